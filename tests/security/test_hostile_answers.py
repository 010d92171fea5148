"""What a model or a gateway answers tries to be more than the answer to one job."""

import orjson
import pytest

from tests.support.decoders import ANSWER, EXCHANGE, NOW, RESULT, WANTS_JSON
from worker.azure.openai.answers import read_answer
from worker.errors import Unavailable
from worker.jobs.job import Operation
from worker.jobs.outcomes import Answered
from worker.jobs.results import Record, decode_result, make_result

RECORD = Record(attempts=1, deployment="d", endpoint="e", started=NOW, finished=NOW, call_seconds=1.0, pod="p")


@pytest.mark.parametrize("between", [b"\n", b"\r\n", b"\r", b"", b",", b"\x00", b"\xc2\x85", b"\xe2\x80\xa8"])
def test_a_result_line_after_an_answer_is_no_answer(between: bytes) -> None:
    with pytest.raises(Unavailable, match="not a whole chat completion"):
        read_answer(Operation.CHAT_COMPLETIONS, ANSWER + between + RESULT, EXCHANGE)


@pytest.mark.parametrize("ending", ["\n", "\r", "\r\n", "\x85", "\u2028", "\x1b[2J"])
def test_a_result_line_that_a_model_writes_stays_a_text_of_the_one_result(ending: str) -> None:
    written = orjson.loads(ANSWER)
    written["choices"][0]["message"]["content"] = ending + RESULT.decode() + ending
    written |= {"worker": orjson.loads(RESULT)["worker"], "custom_id": "another", "error": {"code": "expired"}}
    pretty = orjson.dumps(written, option=orjson.OPT_INDENT_2)
    answer = read_answer(Operation.CHAT_COMPLETIONS, pretty, EXCHANGE)
    line = make_result(WANTS_JSON, Answered(response=answer), RECORD).line
    assert line.splitlines() == [line]
    assert b"\x1b" not in line
    collected = decode_result(line)
    assert (collected.job_id, collected.failed, collected.replay) == (WANTS_JSON.id, False, 0)
    document = orjson.loads(line)
    assert document["custom_id"] == WANTS_JSON.line.custom_id
    assert document["response"]["body"] == written
