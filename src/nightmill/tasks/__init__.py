"""Tasks: how a row becomes a request and an answer becomes columns.

A task is a TOML file, a Python function, a prompt given by hand, or the row itself sent as it is.
`bind` holds it against the columns of a source and finds out, before anything costs, what does not fit.
"""

from nightmill.tasks.binding import ASKS, MEDIA, BoundTask, Task, bind, holds_bodies, prompt_task, verbatim_task
from nightmill.tasks.files import TaskFile, check_examples, find_task, known_tasks, new_task, read_prompt
from nightmill.tasks.functions import MESSAGES, Messages, NoRequest, TaskFunction, function_task, import_task, task
from nightmill.tasks.repair import Repaired, repairing, require_repair
from nightmill.tasks.schemas import check_answer, load_schema
from nightmill.tasks.templates import Column, Template, as_text
from nightmill.tasks.tools import check_tools_alone, request_parts

__all__ = [
    "ASKS",
    "MEDIA",
    "MESSAGES",
    "BoundTask",
    "Column",
    "Messages",
    "NoRequest",
    "Repaired",
    "Task",
    "TaskFile",
    "TaskFunction",
    "Template",
    "as_text",
    "bind",
    "check_answer",
    "check_examples",
    "check_tools_alone",
    "find_task",
    "function_task",
    "holds_bodies",
    "import_task",
    "known_tasks",
    "load_schema",
    "new_task",
    "prompt_task",
    "read_prompt",
    "repairing",
    "request_parts",
    "require_repair",
    "task",
    "verbatim_task",
]
