"""The process that is connected to Ray on behalf of the command: it does as it is told on stdin, and ends with it.

Ray ends the process that is connected to it when its head or the machine's raylet is gone for long. The command that
supervises a run must live on then, so it asks this process, a line of JSON for each question and each answer.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from vitscale.config import UserError

from .cluster import ray_cluster, room_for
from .node_tasks import cut_link, send_signal
from .outcome import outcome_to_json, refused
from .task import TrainTask
from .trainer import run_attempt
from .workers import Workers

_SECONDS_TO_LEAVE = 15.0


def main() -> None:
    """Answer questions on the descriptor given as the argument, until stdin is closed."""
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions,), daemon=True).start()
    with open(int(sys.argv[1]), "w", encoding="utf-8") as answers, contextlib.ExitStack() as stack:
        while True:
            _say(answers, _answer(json.loads(questions.get()), stack=stack))


def _listen(questions: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        questions.put(line)
    # The command has ended, or wants this process to: leave the cluster, whatever goes on.
    threading.Timer(_SECONDS_TO_LEAVE, os._exit, args=(1,)).start()
    os.kill(os.getpid(), signal.SIGTERM)


def _say(answers: TextIO, text: str) -> None:
    answers.write(text + "\n")
    answers.flush()


def _answer(question: dict[str, Any], *, stack: contextlib.ExitStack) -> str:
    match question["do"]:
        case "join":
            try:
                cluster = stack.enter_context(ray_cluster(address=question["address"], num_cpus=question["num_cpus"]))
            except UserError as error:
                return outcome_to_json(refused(error))
            return json.dumps(dataclasses.asdict(cluster))
        case "count":
            return json.dumps(room_for(Workers(**question["workers"])))
        case "signal":
            return json.dumps({"reason": send_signal(question["number"], pid=question["pid"], host=question["host"])})
        case "cut":
            return json.dumps({"reason": cut_link(question["interface"], seconds=question["seconds"], host=question["host"])})
        case "train":
            task = TrainTask.from_json(question["task"])
            return outcome_to_json(run_attempt(task, run_dir=Path(question["run_dir"]), workers=Workers(**question["workers"])))
    raise AssertionError(question)


if __name__ == "__main__":
    main()
