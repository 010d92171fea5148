"""What a person at a terminal is told when Azure says no: what failed, why, and the next step."""

from azure.servicebus._pyamqp.error import TokenAuthFailure
from azure.servicebus.exceptions import (
    MessageSizeExceededError,
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusQuotaExceededError,
    ServiceBusServerBusyError,
)

from worker.azure.network import causes_of
from worker.azure.servicebus.faults import claims_wanted, find_unopened, is_not_allowed
from worker.client.batch_files import InvalidBatch
from worker.client.submission import SubmissionInterrupted
from worker.errors import TokenUnavailable, WorkerError
from worker.roles import SERVICE_BUS_DATA_RECEIVER, SERVICE_BUS_DATA_SENDER

_AGAIN = "It is safe to run the same command again: nothing is sent twice."


def explain(error: BaseException, *, again: str = f" {_AGAIN}") -> str:
    """One readable message for an error of the client; the innermost cause that is known decides. `again` ends it
    where the network failed."""
    if isinstance(error, SubmissionInterrupted) and error.__cause__:
        return _explain_interruption(error, error.__cause__)
    return ": ".join([*getattr(error, "__notes__", ()), _explain(error, again)])


def _explain(error: BaseException, again: str) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if unopened := find_unopened(error):
        return f"Service Bus cannot be reached: {unopened.what}\nNext: {unopened.next_step}.{again}"
    for cause in causes_of(error):
        told = _tell(cause, again)
        if told:
            return told
    return _first_line(error)


def _explain_interruption(error: SubmissionInterrupted, cause: BaseException) -> str:
    # a file that has changed is another batch
    again = "" if isinstance(cause, InvalidBatch) else f"\n{_AGAIN}"
    return f"{error}, then it was interrupted.\n{explain(cause, again='')}{again}"


def _tell(error: BaseException, again: str) -> str | None:
    match error:
        case _ if is_not_allowed(error):
            return (
                f"The queue takes no such message: {_first_line(error)}\n"
                "Next: name a queue of jobs, which has no sessions, by --queue, AOAI_WORKER_JOBS_QUEUE or "
                "AOAI_WORKER_QUEUES."
            )
        case TokenUnavailable():
            return f"No token for {error.scope}: {error.detail}\nNext: {_way_to_a_token(error)}"
        case ServiceBusAuthorizationError():
            return f"Service Bus refuses: {_first_line(error)}\nNext: {_missing_role(str(error))}"
        case ServiceBusAuthenticationError():
            return (
                f"Service Bus does not accept the token: {_first_line(error)}\n"
                "Next: check that AZURE_TENANT_ID is the namespace's tenant."
            )
        case TokenAuthFailure(status_code=404):  # Azure misses the queue when it is given a token for it
            return _tell(MessagingEntityNotFoundError(message=_text(error.status_description)), again)
        case TokenAuthFailure(status_code=401) if "InvalidAudience" in str(error):
            return (
                "Service Bus does not accept the token. Either the queue does not exist, or this identity has no "
                "role on it.\n"
                f"Next: check the queue's name and AOAI_WORKER_SERVICEBUS_NAMESPACE, or {_missing_role('')}"
            )
        case MessagingEntityNotFoundError():
            return (
                f"The queue does not exist: {_first_line(error)}\n"
                "Next: check AOAI_WORKER_SERVICEBUS_NAMESPACE, AOAI_WORKER_JOBS_QUEUE and "
                "AOAI_WORKER_RESULTS_QUEUE."
            )
        case MessagingEntityDisabledError():
            return f"The queue is disabled: {_first_line(error)}\nNext: enable it in the portal."
        case ServiceBusQuotaExceededError():
            return f"The queue is full: {_first_line(error)}\nNext: let the workers catch up, then submit again."
        case ServiceBusServerBusyError():
            return f"Service Bus throttles: {_first_line(error)}\nNext: wait a minute, then run the command again."
        case MessageSizeExceededError():
            return (
                f"A message is larger than the queue takes: {_first_line(error)}\n"
                "Next: shorten the job, or set AOAI_WORKER_CLAIMS_CONTAINER to send large jobs by Blob storage."
            )
        case ServiceBusConnectionError() | ServiceBusCommunicationError() | OperationTimeoutError():
            return (
                f"Service Bus cannot be reached: {_first_line(error)}\n"
                "Next: check AOAI_WORKER_SERVICEBUS_NAMESPACE, AOAI_WORKER_SERVICEBUS_ENDPOINT and the "
                "network: port 5671 must be open, bypassing any proxy, or port 443 with "
                "AOAI_WORKER_SERVICEBUS_TRANSPORT=websockets; for a private endpoint or TLS inspection set "
                f"AOAI_WORKER_CA_FILE.{again}"
            )
        case WorkerError():
            return str(error)
        case _:
            return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _way_to_a_token(error: TokenUnavailable) -> str:
    if error.code in ("none", "timeout"):  # Entra did not say no: it was not asked
        return (
            "on a laptop, run `az login`. In a pod, check AZURE_FEDERATED_TOKEN_FILE, and that "
            "AZURE_AUTHORITY_HOST can be reached. Behind TLS inspection, set AOAI_WORKER_CA_FILE."
        )
    return (
        "check AZURE_CLIENT_ID and AZURE_TENANT_ID, and that the identity has a federated credential for this "
        "service account."
    )


def _missing_role(text: str) -> str:
    for role in claims_wanted(text):
        return f'give this identity the role "{role.name}" on the queue; it takes effect within minutes.'
    return (
        f'submit needs the role "{SERVICE_BUS_DATA_SENDER.name}" on the jobs queues. With the queue sink it needs '
        f'the role on the results queue too, and status and collect need "{SERVICE_BUS_DATA_RECEIVER.name}" there. '
        "A new role takes effect within minutes."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
