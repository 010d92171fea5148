"""Foreign tests that are not run, and those that cannot pass anywhere, by name, each with its reason."""

from collections.abc import Mapping
from typing import Final

_SLEEPS: Final[Mapping[int, tuple[str, ...]]] = {
    305: ("test_queue_receive_keep_conn_alive_async", "test_queue_receive_keep_conn_alive"),
    300: ("test_queue_receiver_sender_resume_after_link_timeout",),
    100: (
        "test_queue_receive_handler_with_autolockrenew_many_msgs",
        "test_topic_by_servicebus_client_send_large_messages_w_sleep",
    ),
    60: (
        "test_async_queue_by_queue_client_conn_str_receive_handler_release_messages",
        "test_queue_by_queue_client_conn_str_receive_handler_release_messages",
        "test_async_queue_message_expiry",
        "test_queue_message_expiry",
        "test_async_session_message_expiry",
        "test_session_message_expiry",
    ),
    45: (
        "test_async_queue_message_lock_renew",
        "test_queue_message_lock_renew",
        "test_async_session_by_servicebus_client_renew_client_locks",
        "test_session_by_servicebus_client_renew_client_locks",
    ),
    40: ("test_github_issue_6178_async", "test_github_issue_6178"),
}

_WAITS: Final[Mapping[int, tuple[str, ...]]] = {
    260: (
        "test_session_cancel_scheduled_messages",
        "test_async_session_cancel_scheduled_messages",
        "test_session_connection_failure_is_idempotent",
    ),
}
"""Seconds in which a test waits, over and over, for what must not come."""

SKIPS: Final[Mapping[str, str]] = {
    name: f"{what} for {seconds} s"
    for what, times in (("sleeps", _SLEEPS), ("waits", _WAITS))
    for seconds, names in times.items()
    for name in names
}

_LONGER_WAIT = (
    "azure-servicebus 7.15 ends the call after `max_wait_time` of receive_messages, 5 s; the test expects the "
    "65 s of earlier versions"
)
_HACKED_METHOD = (
    "the test replaces a method of the SDK by one without `await_outcome`, which azure-servicebus 7.15 passes to it"
)

EXPLANATIONS: Final[Mapping[str, str]] = {
    "test_async_next_available_session_timeout_value": _LONGER_WAIT,
    "test_next_available_session_timeout_value": _LONGER_WAIT,
    "test_async_queue_operation_negative": _HACKED_METHOD,
    "test_queue_operation_negative": _HACKED_METHOD,
}
"""Why a test fails that no Service Bus can make pass."""
