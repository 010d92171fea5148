"""Azure's errors in words that help."""

import pytest
from azure.servicebus._pyamqp.error import TokenAuthFailure
from azure.servicebus.exceptions import (
    MessagingEntityNotFoundError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusConnectionError,
    ServiceBusError,
    ServiceBusQuotaExceededError,
)

from worker.cli.advice import explain
from worker.errors import TokenUnavailable

NO_SUCH_QUEUE = TokenAuthFailure(  # type: ignore[no-untyped-call]
    401, b"InvalidAudience: Invalid authorization token audience."
)
NO_TOKEN = TokenUnavailable("https://servicebus.azure.net//.default", "AADSTS700016: unknown client", code="700016")


@pytest.mark.parametrize(
    ("error", "what", "next_step"),
    [
        (NO_TOKEN, "No token for https://servicebus.azure.net//.default: AADSTS700016", "AZURE_CLIENT_ID"),
        (TokenUnavailable("s", "no route", code="none"), "No token for s: no route", "az login"),
        (ServiceBusAuthorizationError(message="'Send' claim(s) are required"), "refuses", "Data Sender"),
        (ServiceBusAuthorizationError(message="unauthorized"), "refuses", "Data Receiver"),
        (ServiceBusAuthenticationError(message="bad audience"), "bad audience", "AZURE_TENANT_ID"),
        (MessagingEntityNotFoundError(message="no such queue"), "does not exist", "AOAI_WORKER_RESULTS_QUEUE"),
        (ServiceBusConnectionError(message="refused"), "cannot be reached: refused", "5671"),
        (OperationTimeoutError(), "cannot be reached", "safe to run the same command again"),
        (ServiceBusQuotaExceededError(message="too much"), "full", "catch up"),
        (NO_SUCH_QUEUE, "Either the queue does not exist", "Data Sender"),
    ],
)
def test_each_error_says_what_failed_and_what_to_do(error: Exception, what: str, next_step: str) -> None:
    first, *rest = explain(error).splitlines()
    assert what in first
    assert next_step.lower() in "\n".join(rest).lower()


def test_the_cause_that_the_sdk_has_wrapped_decides() -> None:
    wrapped = ServiceBusError(message="Handler failed", error=NO_TOKEN)
    assert explain(wrapped) == explain(NO_TOKEN)


def test_what_an_error_was_noted_to_concern_is_told_first() -> None:
    error = ServiceBusConnectionError(message="refused")
    error.add_note("Queue 'jobs'")
    assert explain(error).startswith("Queue 'jobs': Service Bus cannot be reached: refused\n")


def test_an_unknown_error_is_told_by_its_first_line() -> None:
    assert explain(ServiceBusError(message="one\ntwo")) == "one"
    assert explain(RuntimeError()) == "RuntimeError"
