"""`python -m harness.worker`: reads requests as JSON lines on stdin, answers each with one JSON line on stdout.

Started by `harness.running.process`. Whatever libraries print goes to stderr, which the parent keeps as a log.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from harness.worker.lifetime import die_with_parent


def main() -> None:
    """Serves requests until stdin closes or a request fails: after an error the process is not to be trusted."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library's print must not become an answer
    from harness.worker.session import Sessions  # noqa: PLC0415  (after the redirection: importing torch may print)

    sessions = Sessions()
    for line in sys.stdin:
        request = json.loads(line)
        answered = request.pop("answered", True)
        answer = _answer(sessions, request)
        if not answered:
            continue
        answers.write(json.dumps(answer) + "\n")
        if "error" in answer:
            break


def _answer(sessions: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The worker boundary, the one place that catches exceptions: each becomes a status with a reason."""
    from harness.worker.failure import classify  # noqa: PLC0415

    try:
        return {"result": sessions.handle(request)}
    except Exception as error:  # noqa: BLE001  (whatever a library throws becomes its row's status)
        traceback.print_exc()
        status, reason = classify(error)
        return {"error": {"status": status, "reason": reason}}


if __name__ == "__main__":
    main()
