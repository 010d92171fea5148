"""`aoai-worker dlq` as a process: dead letters are listed, shown, sent again and taken away."""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from azure.servicebus import ServiceBusMessage, TransportType
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageBodyType

from embedded_azure.config import Config, Identity, QueueSpec, Role, RoleAssignment
from tests.support.local_azure import SignedCredential
from tests.support.patience import PATIENCE
from tests.support.processes import (
    Azure,
    azure,
    command,
    config_for_tests,
    process,
    results_in,
    worker,
    write_batch,
)
from worker.jobs.job import make_job_id
from worker.testing import job_line

RECEIVER: Role = "Azure Service Bus Data Receiver"
SENDER: Role = "Azure Service Bus Data Sender"


def person(number: int, name: str) -> Identity:
    return Identity(
        name=name,
        client_id=f"6b0f6c1e-0000-4000-8000-00000000002{number}",
        object_id=f"0d0d0d0d-0000-4000-8000-00000000002{number}",
        subject=f"system:serviceaccount:default:{name}",
    )


def config_with_people(*, jobs: QueueSpec | None = None) -> Config:
    """The operator may listen to the jobs queue and send to it, the onlooker only listen."""
    config = config_for_tests()
    operator, onlooker, owner = person(1, "operator"), person(2, "onlooker"), person(3, "owner")
    rights: list[tuple[Identity, Role, str]] = [
        (operator, RECEIVER, "servicebus/jobs"),
        (operator, SENDER, "servicebus/jobs"),
        (onlooker, RECEIVER, "servicebus/jobs"),
        (owner, "Azure Service Bus Data Owner", "servicebus"),
    ]
    roles = [RoleAssignment(object_id=who.object_id, role=role, scope=scope) for who, role, scope in rights]
    queues = config.queues if jobs is None else (jobs, *(queue for queue in config.queues if queue.name != "jobs"))
    return replace(
        config,
        identities=(*config.identities, operator, onlooker, owner),
        role_assignments=(*config.role_assignments, *roles),
        queues=queues,
    )


@dataclass(frozen=True)
class Said:
    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


async def dlq(cloud: Azure, *arguments: str, identity: str = "operator") -> Said:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "worker", "dlq", *arguments),
        env=cloud.environment(identity),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await child.communicate()
    return Said(code=child.returncode or 0, out=out, err=err.decode())


async def listed(cloud: Azure) -> list[dict[str, Any]]:
    said = await dlq(cloud, "list", "--json")
    assert said.code == 0, said.err
    return [json.loads(line) for line in said.lines]


@asynccontextmanager
async def bus(cloud: Azure) -> AsyncIterator[ServiceBusClient]:
    """As the namespace's owner, who may do what a test needs to prepare."""
    environment = cloud.environment("owner")
    trust = ssl.create_default_context(cafile=environment["AOAI_WORKER_CA_FILE"])
    credential = SignedCredential(
        private_key=(cloud.state / "entra.key.pem").read_bytes(),
        tenant_id=cloud.config.tenant_id,
        identity=cloud.config.identity("owner"),
    )
    async with ServiceBusClient(
        cloud.config.namespace,
        credential,
        custom_endpoint_address=f"sb://{environment['AOAI_WORKER_SERVICEBUS_ENDPOINT']}",
        transport_type=TransportType.Amqp,
        ssl_context=trust,
    ) as client:
        yield client


async def bury(client: ServiceBusClient, *messages: Any, reason: str = "InvalidJson") -> None:
    """Send them, and dead-letter all that is in the queue."""
    async with client.get_queue_sender("jobs") as sender, client.get_queue_receiver("jobs") as receiver:
        for message in messages:
            await sender.send_messages(message)
        left = len(messages)
        while left:
            received = await receiver.receive_messages(left, max_wait_time=PATIENCE)
            assert received, "what was sent did not come"
            for message in received:
                await receiver.dead_letter_message(message, reason=reason, error_description="fix it")
            left -= len(received)


async def waiting(client: ServiceBusClient) -> Sequence[Any]:
    """What the jobs queue holds."""
    async with client.get_queue_receiver("jobs") as receiver:
        return await receiver.peek_messages(250, sequence_number=1)


async def dead(client: ServiceBusClient) -> list[str]:
    """Message-ids of what can be had from the dead-letter queue: not what somebody holds. They come again."""
    async with client.get_queue_receiver("jobs", sub_queue="deadletter") as receiver:
        received = await receiver.receive_messages(250, max_wait_time=2)
        for message in received:
            await receiver.abandon_message(message)
    return sorted(str(message.message_id) for message in received)


async def dead_lettered(client: ServiceBusClient, message_id: str) -> None:
    """Look until it is there: another process dead-letters it."""
    async with asyncio.timeout(PATIENCE), client.get_queue_receiver("jobs", sub_queue="deadletter") as receiver:
        while message_id not in [letter.message_id for letter in await receiver.peek_messages(250)]:
            await asyncio.sleep(0.1)


def letter(name: str, body: bytes = b"{", **properties: Any) -> ServiceBusMessage:
    message = ServiceBusMessage(body, message_id=name, correlation_id="b")
    if properties:
        message.application_properties = dict(properties.items())
    return message


async def test_what_a_worker_dead_lettered_is_listed_shown_and_comes_back_unchanged(tmp_path: Path) -> None:
    async with azure(tmp_path, config_with_people()) as cloud, bus(cloud) as client, worker(cloud):
        async with client.get_queue_sender("jobs") as sender:
            await sender.send_messages(letter("b/bad", b'{"secret\x1b[2J'))
        await dead_lettered(client, "b/bad")
        (found,) = await listed(cloud)
        shown = await dlq(cloud, "show", str(found["sequence_number"]))
        body = await dlq(cloud, "show", str(found["sequence_number"]), "--body")
        absent = await dlq(cloud, "show", "4711")
        replayed = await dlq(cloud, "replay", str(found["sequence_number"]))
        await dead_lettered(client, "b/bad~r1")
        (again,) = await listed(cloud)
        plain = await dlq(cloud, "list")
        twice = await dlq(cloud, "replay", "--reason", "invalidjson")
    assert (found["message_id"], found["batch_id"], found["reason"]) == ("b/bad", "b", "InvalidJson")
    assert found["description"].startswith("the body of 12 bytes is not JSON")
    assert found["size"] == 12
    assert b"\x1b" not in shown.out, "nothing that steers a terminal"
    assert shown.lines[-1] == '{"secret\\x1b[2J'
    assert ("reason", "InvalidJson") in {tuple(line.split(maxsplit=1)) for line in shown.lines}
    assert body.out == b'{"secret\x1b[2J'
    assert (absent.code, absent.out) == (1, b"")
    assert "no dead letter 4711" in absent.err
    assert (replayed.code, replayed.lines) == (0, [f"{found['sequence_number']}\tb/bad~r1"])
    same = {"batch_id", "reason", "description", "size"}
    assert {name: again[name] for name in same} == {name: found[name] for name in same}
    assert again["message_id"] == "b/bad~r1"
    assert plain.lines[0].split("\t")[2:5] == ["b/bad~r1", "b", "InvalidJson"]
    assert twice.lines == [f"{again['sequence_number']}\tb/bad~r2"]


async def test_a_replay_is_the_message_as_it_was_and_its_old_life_is_over(tmp_path: Path) -> None:
    """Dead-lettered with little left to live, and by clients that send other bodies than bytes."""
    claim = ServiceBusMessage(
        b'{"claim": {}}',
        message_id="b/claim",
        correlation_id="b",
        content_type="application/vnd.aoai-worker.claim+json",
        subject="s",
        reply_to="r",
        application_properties={"traceparent": "00-1", "n": 7, "job-id": "b/other"},
    )
    value = AmqpAnnotatedMessage(value_body={"a": ["x", 1]}, properties={"message_id": "b/value"})
    async with azure(tmp_path, config_with_people()) as cloud, bus(cloud) as client:
        await bury(client, claim, value, ServiceBusMessage(b"short", message_id="b/short"))
        said = await dlq(cloud, "replay", "--all")
        sent = {message.message_id: message for message in await waiting(client)}
        assert await listed(cloud) == []
    assert said.code == 0, said.err
    assert "3 replayed" in said.err
    assert set(sent) == {"b/claim~r1", "b/value~r1", "b/short~r1"}
    again = sent["b/claim~r1"]
    assert b"".join(again.body) == b'{"claim": {}}'
    assert (again.correlation_id, again.content_type) == ("b", "application/vnd.aoai-worker.claim+json")
    assert (again.subject, again.reply_to) == ("s", "r")
    assert again.application_properties == {b"traceparent": b"00-1", b"n": 7, b"job-id": b"b/other"}
    assert sent["b/value~r1"].body_type is AmqpMessageBodyType.VALUE
    assert sent["b/value~r1"].body == {b"a": [b"x", 1]}
    assert sent["b/value~r1"].application_properties == {b"job-id": b"b/value"}
    assert sent["b/short~r1"].dead_letter_reason is None


async def test_what_expired_or_names_a_past_deadline_can_be_given_time_again(tmp_path: Path) -> None:
    past = "2026-01-01T00:00:00Z"
    async with azure(tmp_path, config_with_people()) as cloud, bus(cloud) as client:
        async with client.get_queue_sender("jobs") as sender:
            brief = letter("b/brief")
            brief.time_to_live = timedelta(seconds=0.1)
            await sender.send_messages(brief)
        async with asyncio.timeout(PATIENCE):
            while not await dead(client):
                await asyncio.sleep(0.1)  # in another process: its time to live passes
        await bury(client, letter("b/late", deadline=past))
        left = await dlq(cloud, "replay", "--all")
        wrong = await dlq(cloud, "replay", "--all", "--deadline", past)
        given = await dlq(cloud, "replay", "--all", "--deadline", "none")
        sent = {message.message_id: message for message in await waiting(client)}
    assert left.code == 1
    assert [line.split("\t")[1] for line in left.lines] == ["b/brief~r1"]
    assert f"its deadline {past} has passed" in left.err
    assert (wrong.code, wrong.out) == (2, b"")
    assert "RFC 3339" in wrong.err
    assert given.code == 0
    assert set(sent) == {"b/brief~r1", "b/late~r1"}
    assert sent["b/brief~r1"].time_to_live is None
    assert sent["b/late~r1"].application_properties == {b"job-id": b"b/late"}


async def test_the_result_of_a_replayed_job_supersedes_the_error_that_was_there(tmp_path: Path) -> None:
    """As after a sweeper that died between writing the error and taking the dead letter away."""
    config = config_with_people(jobs=QueueSpec(name="jobs", max_delivery_count=1))
    async with azure(tmp_path, config) as cloud, bus(cloud) as client:
        batch = str(write_batch(tmp_path / "in.jsonl", 1))
        code, output = await command(cloud, "submit", batch, "--batch", "b")
        assert code == 0, output
        async with client.get_queue_receiver("jobs") as receiver:
            (job,) = await receiver.receive_messages(1, max_wait_time=PATIENCE)
            await receiver.abandon_message(job)
        async with client.get_queue_sender("results") as results:
            await results.send_messages(
                ServiceBusMessage(error_line("q-0"), message_id="b/q-0", session_id="b", correlation_id="b")
            )
        (found,) = await listed(cloud)
        assert found["reason"] == "MaxDeliveryCountExceeded"
        assert (await dlq(cloud, "replay", str(found["sequence_number"]))).code == 0
        async with worker(cloud):
            async with asyncio.timeout(PATIENCE):
                while await waiting(client):
                    await asyncio.sleep(0.1)  # in another process: the worker answers
            out = tmp_path / "out.jsonl"
            code, output = await command(cloud, "collect", "b", "-o", str(out), "--follow")
        assert code == 0, output
        (result,) = results_in(out)
    assert result["error"] is None
    assert result["response"]["status_code"] == 200
    assert (result["worker"]["job_id"], result["worker"]["replay"]) == ("b/q-0", 1)


def error_line(custom_id: str) -> bytes:
    block = {"schema": 1, "job_id": make_job_id("b", custom_id), "batch_id": "b"}
    error = {"code": "max_deliveries", "message": "gone"}
    return json.dumps({"custom_id": custom_id, "response": None, "error": error, "worker": block}).encode()


async def test_killed_between_sending_and_taking_away_a_replay_is_still_one_message(tmp_path: Path) -> None:
    config = config_with_people(jobs=QueueSpec(name="jobs", lock_duration=3.0))
    unsettled = {
        "kind": "lose_answer",
        "on": "settle",
        "applied": False,
        "entity": "jobs/$DeadLetterQueue",
    }
    async with azure(tmp_path, config) as cloud, bus(cloud) as client:
        await bury(client, letter("b/a"))
        await cloud.control("/local/faults", unsettled, servicebus=True)
        arguments = ("-m", "worker", "dlq", "replay", "--all")
        async with process(*arguments, environment=cloud.environment("operator")) as dying:
            async with asyncio.timeout(PATIENCE):
                while not await waiting(client):
                    await asyncio.sleep(0.1)  # in another process: it sends
            dying.child.kill()
            await dying.ended()
        await cloud.control("/local/faults", [], servicebus=True)
        async with asyncio.timeout(PATIENCE):
            while not await dead(client):
                await asyncio.sleep(0.1)  # in another process: the dead one's lock lapses
        again = await dlq(cloud, "replay", "--all")
        sent = [message.message_id for message in await waiting(client)]
        assert await listed(cloud) == []
    assert again.code == 0, again.err
    assert sent == ["b/a~r1"]


async def test_what_lies_behind_others_is_reached_and_the_others_stay_free(tmp_path: Path) -> None:
    async with azure(tmp_path, config_with_people()) as cloud, bus(cloud) as client:
        await bury(client, *[letter(f"b/{number:03}") for number in range(120)])
        last = (await listed_all(cloud))[-1]
        said = await dlq(cloud, "replay", str(last["sequence_number"]))
        few = await dlq(cloud, "list", "--limit", "3")
        free = await dead(client)
    assert said.code == 0, said.err
    assert last["message_id"] == "b/119"
    assert free == [f"b/{number:03}" for number in range(119)]
    assert len(few.lines) == 3
    assert "119 dead letters in queue jobs: 119 InvalidJson." in few.err
    assert "Shown are the first 3" in few.err


async def listed_all(cloud: Azure) -> list[dict[str, Any]]:
    said = await dlq(cloud, "list", "--json", "--limit", "1000")
    return [json.loads(line) for line in said.lines]


async def test_two_people_who_replay_everything_at_once_send_each_once(tmp_path: Path) -> None:
    async with azure(tmp_path, config_with_people()) as cloud, bus(cloud) as client:
        await bury(client, *[letter(f"b/{number}") for number in range(60)])
        both = await asyncio.gather(dlq(cloud, "replay", "--all"), dlq(cloud, "replay", "--all"))
        sent = sorted(message.message_id for message in await waiting(client))
        assert await listed(cloud) == []
    assert sent == sorted(f"b/{number}~r1" for number in range(60))
    assert sorted(line.split("\t")[1] for said in both for line in said.lines) == sent


async def test_discarding_needs_a_word_and_keeps_a_copy(tmp_path: Path) -> None:
    saved = tmp_path / "gone.jsonl"
    async with azure(tmp_path, config_with_people()) as cloud, bus(cloud) as client:
        await bury(client, letter("b/text", b"caf\xc3\xa9", n=1), letter("b/bytes", b"\xff"))
        await bury(client, AmqpAnnotatedMessage(value_body={"a": 1}), reason="Mine")
        asked = await dlq(cloud, "discard", "--all", "--save", str(saved))
        assert len(await listed(cloud)) == 3
        gone = await dlq(cloud, "discard", "--reason", "InvalidJson", "--save", str(saved), "--yes")
        rest = await dlq(cloud, "discard", "--all", "--save", "-", "--yes")
        assert await listed(cloud) == []
        assert await waiting(client) == []
        none = await dlq(cloud, "discard", "1", "--save", "-", "--yes")
    assert asked.code == 2
    assert "--yes" in asked.err
    assert (gone.code, gone.out) == (0, b"")
    text, data = results_in(saved)
    assert (text["message_id"], text["body"], text["properties"]) == ("b/text", "café", {"n": 1})
    assert (text["reason"], text["description"], text["queue"]) == ("InvalidJson", "fix it", "jobs")
    assert (data["message_id"], data["body_base64"]) == ("b/bytes", "/w==")
    assert json.loads(rest.out)["body_value"] == {"a": 1}
    assert (none.code, none.out) == (1, b"")


async def test_a_missing_role_is_named_and_nothing_is_taken(tmp_path: Path) -> None:
    async with azure(tmp_path, config_with_people()) as cloud, bus(cloud) as client:
        await bury(client, letter("b/a", job_line("a")))
        may_look = await dlq(cloud, "list", identity="onlooker")
        may_not_send = await dlq(cloud, "replay", "--all", identity="onlooker")
        may_nothing = await dlq(cloud, "list", identity="stranger")
        assert await dead(client) == ["b/a"]
    assert len(may_look.lines) == 1
    assert (may_not_send.code, may_not_send.out) == (1, b"")
    assert f'Next: give this identity the role "{SENDER}"' in may_not_send.err
    assert (may_nothing.code, may_nothing.out) == (1, b"")
    assert f'Next: give this identity the role "{RECEIVER}"' in may_nothing.err
    assert "Traceback" not in may_not_send.err + may_nothing.err


async def test_what_is_meant_has_to_be_said_in_one_way(tmp_path: Path) -> None:
    async with azure(tmp_path, config_with_people()) as cloud:
        for arguments in ((), ("1", "--all"), ("--reason", "x", "--all")):
            said = await dlq(cloud, "replay", *arguments)
            assert said.code == 2
            assert "--reason or --all" in said.err
