"""The textbook worker, against which the worker is measured: the SDKs' own samples, put together.

It is meant to be good textbook code and uses the SDKs' public surface with their defaults. What it lacks is what
samples lack: proofs at start-up, gates, metrics, draining. It reads the same environment as the worker.
"""

import asyncio
import json
import os
import ssl
from dataclasses import dataclass

from azure.identity.aio import WorkloadIdentityCredential, get_bearer_token_provider
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage, TransportType
from azure.servicebus.aio import AutoLockRenewer, ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

OPENAI_SCOPE = "https://cognitiveservices.azure.com/.default"


@dataclass(kw_only=True)
class Textbook:
    """Takes a group of messages, handles all of it at once, then takes the next."""

    model: AsyncOpenAI
    receiver: ServiceBusReceiver
    sender: ServiceBusSender
    renewer: AutoLockRenewer
    sending: asyncio.Lock
    """The SDK's senders are not safe for use by several coroutines at once."""

    async def run(self, in_flight: int) -> None:
        while True:
            messages = await self.receiver.receive_messages(max_message_count=in_flight, max_wait_time=5)
            for message in messages:
                self.renewer.register(self.receiver, message, max_lock_renewal_duration=3600)
            await asyncio.gather(*(self._handle(message) for message in messages))

    async def _handle(self, message: ServiceBusReceivedMessage) -> None:
        job = json.loads(str(message))
        try:
            completion = await self.model.chat.completions.create(**job["body"])
        except OpenAIError as error:
            print(f"abandoned {message.message_id}: {error}")
            await self.receiver.abandon_message(message)
            return
        response = {"status_code": 200, "request_id": completion._request_id, "body": completion.model_dump()}
        result = {"id": message.message_id, "custom_id": job["custom_id"], "response": response, "error": None}
        async with self.sending:
            await self.sender.send_messages(
                ServiceBusMessage(
                    json.dumps(result),
                    message_id=message.message_id,
                    session_id=message.correlation_id,
                    correlation_id=message.correlation_id,
                    content_type="application/json",
                )
            )
        await self.receiver.complete_message(message)


async def main() -> None:
    ca_file = os.environ["AOAI_WORKER_CA_FILE"]
    async with (
        WorkloadIdentityCredential(connection_verify=ca_file) as credential,
        AsyncOpenAI(
            base_url=f"{os.environ['AZURE_OPENAI_ENDPOINT']}/openai/v1/",
            api_key=get_bearer_token_provider(credential, OPENAI_SCOPE),
            http_client=DefaultAsyncHttpxClient(verify=ssl.create_default_context(cafile=ca_file)),
        ) as model,
        ServiceBusClient(
            os.environ["AOAI_WORKER_SERVICEBUS_NAMESPACE"],
            credential,
            connection_verify=ca_file,
            custom_endpoint_address=f"sb://{os.environ['AOAI_WORKER_SERVICEBUS_ENDPOINT']}",
            transport_type=TransportType.Amqp,
        ) as client,
        client.get_queue_receiver("jobs") as receiver,
        client.get_queue_sender("results") as sender,
        AutoLockRenewer() as renewer,
    ):
        print("ready", flush=True)
        textbook = Textbook(model=model, receiver=receiver, sender=sender, renewer=renewer, sending=asyncio.Lock())
        await textbook.run(int(os.environ["AOAI_WORKER_SLOTS"]))


if __name__ == "__main__":
    asyncio.run(main())
