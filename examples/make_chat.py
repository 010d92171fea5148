"""Writes chat.jsonl: 240 chat jobs of many kinds, 14 of which are there to go wrong, as README.md says.

    python examples/make_chat.py

The same file every time, so it can be reviewed as a change of this script.
"""

import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from embedded_azure.models import LARGE, SMALL

Message = dict[str, str]
Job = tuple[str, dict[str, Any]]

REVIEWS = [
    "The kettle boils in two minutes and the lid no longer leaks. I bought a second one for the office.",
    "Third pair of headphones in a year, third one with a dead left ear.",
    "It does what the box says. Nothing more, nothing less.",
    "Delivery took five weeks and nobody answered my letters, but the lamp itself is lovely.",
    "My daughter has worn these boots through a whole winter of puddles and they still look new.",
    "The app asks for my birthday before it lets me dim the light. Returned.",
    "Sturdy, quiet, a little ugly. I would buy it again.",
    "Smells of glue even after a month on the balcony.",
    "The manual is a single drawing, and it is of a different chair.",
    "Battery lasts from Monday to Thursday, exactly as promised.",
]
TICKETS = [
    "I was charged twice for the March invoice, could you return one of them?",
    "The export button does nothing since yesterday's update.",
    "How do I add a colleague without giving her access to payroll?",
    "Our parcel shows as delivered but the porter has not seen it.",
    "Please close my account and delete what you hold about me.",
    "The dashboard is in Finnish after I travelled to Helsinki. I do not read Finnish.",
    "Can I pay by bank transfer instead of by card?",
    "Login works on the phone and fails on the laptop with code 4031.",
]
NOTES = [
    "Meeting moved to 14 May 2026, 09:30, room Birch. Ana brings the samples, Tomasz the contract.",
    "Order 88-1207: twelve crates of pears, two of quinces, to be left at the back gate of 5 Mill Lane by Friday.",
    "Patient asks to change the appointment with Dr Okafor from the 3rd to the 10th; call back on 555-0142.",
    "Invoice 2026-0311 from Harbour Rope Ltd over 1,240.50 EUR, due in 30 days, discount 2 % within 10.",
    "Flight leaves Lisbon at 18:05 and lands in Oslo at 23:20; seat 14C, one suitcase of 21 kg.",
    "Tenant in flat 7 reports a cold radiator in the hall since Sunday; key is with the neighbour, Mrs Lund.",
]
PASSAGES = [
    "A lighthouse keeper kept three books: one for ships, one for weather, and one for birds. When the light was "
    "automated, the first two were archived by the harbour office. Nobody asked for the third, which turned out, "
    "forty years later, to be the longest record of migrating thrushes on that coast.",
    "The town replaced its bus timetable with a promise: no wait longer than nine minutes. Drivers were told to "
    "keep their distance from the bus ahead rather than to be on time. Complaints fell by half in one winter, "
    "although the average wait had only become a minute shorter; what had gone was the uncertainty.",
    "Sourdough rises slowly because its yeasts are few and its bacteria many. The bacteria make the acids that "
    "give the taste and, by the way, keep the loaf from moulding. A baker in a hurry adds yeast from a packet and "
    "gets a loaf by noon that is stale by evening.",
    "The committee compared two bridges. The first would cost less and last forty years; the second would cost a "
    "third more and last a century. It chose the first, because the second would have had to be paid for by people "
    "who had a vote now.",
    "Old maps show the river in five different beds. Each flood chose another, until engineers held it in the "
    "straightest. It has flowed faster since, carrying its gravel to the sea, and the wells in the plain have sunk "
    "by a hand's breadth every year.",
]
SENTENCES = [
    "The last train leaves at a quarter past eleven.",
    "Could you please open the window a little?",
    "We have run out of coffee, but there is tea.",
    "The museum is closed on Mondays, except in August.",
    "I have been waiting for this letter since spring.",
    "Whoever finds the key may keep the umbrella.",
    "It rained so hard that the frogs came indoors.",
    "Nobody told me that the shop had moved.",
]
LANGUAGES = ["French", "German", "Polish", "Spanish", "Swahili", "Japanese"]
SUMS = [(17, "+", 25), (144, "/", 12), (39, "*", 41), (1000, "-", 387), (256, "*", 4), (81, "/", 9)]
STORIES = [
    "Mira has {a} jars and fills {b} of them with plums. How many are empty? In short: {a} - {b}",
    "A rope of {a} metres is cut into {b} equal pieces. How long is each? In short: {a} / {b}",
    "{b} rows with {a} chairs each stand in the hall. How many chairs? In short: {a} * {b}",
    "The first shelf carries {a} books, the second {b}. How many are there? In short: {a} + {b}",
]
TALKS = [
    ("Which trees lose their needles in autumn?", "Larches do.", "And which others?"),
    ("What is the capital of Mongolia?", "Ulaanbaatar.", "How cold does it get there in January?"),
    ("Suggest a name for a small bakery.", "Crust & Co.", "Less like a law firm, please."),
    ("How do I stop bread from sticking to the tin?", "Grease it and dust it with flour.", "I have no flour left."),
    ("Is a tomato a fruit?", "To a botanist, yes.", "And to a cook?"),
    ("What does `git stash` do?", "It puts your changes aside.", "And how do I get them back?"),
]
CODE = [
    "def mean(values): return sum(values) / len(values)",
    "SELECT name FROM staff WHERE salary > (SELECT AVG(salary) FROM staff)",
    "for f in *.txt; do mv $f old-$f; done",
    "const later = ms => new Promise(resolve => setTimeout(resolve, ms))",
    "if (x = 3) { launch(); }",
]


def say(system: str, *turns: str) -> list[Message]:
    """A conversation: the system's word, then user and assistant in turn."""
    roles = ("user", "assistant")
    spoken = [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return [{"role": "system", "content": system}, *spoken]


def make_jobs() -> Iterator[Job]:
    yield from number("review", classify_reviews())
    yield from number("ticket", route_tickets())
    yield from number("extract", extract_fields())
    yield from number("summary", summarise())
    yield from number("translate", translate())
    yield from number("sum", calculate())
    yield from number("talk", talk())
    yield from number("code", explain_code())
    yield from make_troubles()


def number(kind: str, bodies: Iterator[dict[str, Any]]) -> Iterator[Job]:
    for count, body in enumerate(bodies, start=1):
        yield f"{kind}-{count:03}", body


def classify_reviews() -> Iterator[dict[str, Any]]:
    systems = [
        "Answer with one word: positive, negative or mixed.",
        "You rate product reviews from 1 to 5. Answer with the digit alone.",
        "Name the one thing the reviewer talks about most.",
        "Would this reviewer buy the product again? yes, no or unclear.",
    ]
    for system, review in product(systems, REVIEWS):
        yield {
            "model": SMALL,
            "reasoning_effort": "none",
            "max_completion_tokens": 16,
            "messages": say(system, review),
        }


def route_tickets() -> Iterator[dict[str, Any]]:
    systems = [
        "You route support tickets: billing, bug, how-to, shipping or privacy. One word.",
        "Write the first reply to this customer: friendly, three sentences, no promises.",
        "How urgent is this from 1 (can wait a week) to 5 (now)? The digit, then half a sentence why.",
    ]
    for system, ticket in product(systems, TICKETS):
        yield {"model": SMALL, "max_completion_tokens": 300, "messages": say(system, ticket), "user": "support"}


def extract_fields() -> Iterator[dict[str, Any]]:
    wanted = ["dates and times", "names of people and companies", "numbers with their units", "what is to be done"]
    for field, note in product(wanted, NOTES):
        yield {
            "model": LARGE,
            "response_format": {"type": "json_object"},
            "messages": say(f"Extract {field} from the note. Answer with a JSON object.", note),
        }


def summarise() -> Iterator[dict[str, Any]]:
    styles = [
        "Summarise in one sentence.",
        "Summarise for a child of ten.",
        "Give three bullet points.",
        "Write a headline of at most eight words.",
        "What does the text leave unsaid? Two sentences.",
        "Summarise in the form of a telegram.",
    ]
    for style, passage in product(styles, PASSAGES):
        yield {
            "model": LARGE,
            "max_completion_tokens": 400,
            "messages": say("You are a careful editor.", f"{style}\n\n{passage}"),
        }


def translate() -> Iterator[dict[str, Any]]:
    for language, sentence in product(LANGUAGES, SENTENCES):
        yield {"model": SMALL, "messages": say(f"Translate into {language}. Only the translation.", sentence)}


def calculate() -> Iterator[dict[str, Any]]:
    for left, sign, right in SUMS:
        yield {
            "model": SMALL,
            "reasoning_effort": "none",
            "messages": say("Only the number.", f"{left} {sign} {right}"),
        }
    for story, (left, _, right) in product(STORIES, SUMS):
        question = story.format(a=left, b=right)
        yield {"model": LARGE, "messages": say("Think step by step, then give the number.", question)}


def talk() -> Iterator[dict[str, Any]]:
    for model, (asked, answered, next_question) in product((SMALL, LARGE), TALKS):
        yield {
            "model": model,
            "reasoning_effort": "low",
            "messages": say("Be brief.", asked, answered, next_question),
        }
    for turns in (3, 5, 9):
        ping_pong = [f"Word {turn}: name one that begins with its last letter." for turn in range(turns)]
        yield {"model": SMALL, "seed": turns, "messages": say("We play a game with words.", *ping_pong)}


def explain_code() -> Iterator[dict[str, Any]]:
    tasks = ["Explain what this does.", "Name one way in which this can fail.", "Write a test for it."]
    for task, code in product(tasks, CODE):
        content = [{"type": "text", "text": f"{task}\n\n{code}"}]
        yield {"model": LARGE, "max_completion_tokens": 400, "messages": [{"role": "user", "content": content}]}


def make_troubles() -> Iterator[Job]:
    """The phrases in double brackets tell the embedded Azure OpenAI what to do; README.md lists what follows."""
    for count in range(1, 5):
        yield (
            f"refused-prompt-{count}",
            {"model": SMALL, "messages": say("Be brief.", f"[[content-filter]] Story {count}")},
        )
    for count in range(1, 4):
        yield f"unlisted-model-{count}", {"model": "gpt-unlisted", "messages": say("Be brief.", f"Hello {count}")}
    for count in range(1, 3):
        yield (
            f"negative-max-tokens-{count}",
            {
                "model": LARGE,
                "max_completion_tokens": -5,
                "messages": say("Be brief.", f"Write {count} words less than none."),
            },
        )
    for count in range(1, 4):
        yield (
            f"recovers-{count}",
            {"model": SMALL, "messages": say("Be brief.", f"[[status:503x2]] Attempt {count}")},
        )
    for count in range(1, 3):
        yield (
            f"filtered-answer-{count}",
            {"model": LARGE, "messages": say("Be brief.", f"[[content-filter-answer]] Poem {count}")},
        )


def to_line(custom_id: str, body: dict[str, Any]) -> str:
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line, ensure_ascii=False)


def main() -> None:
    lines = [to_line(custom_id, body) for custom_id, body in make_jobs()]
    random.Random(7).shuffle(lines)
    Path(__file__).with_name("chat.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
