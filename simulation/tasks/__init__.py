"""Built-in tasks, and models and data of one's own: what a simulated fleet works on."""

from simulation.tasks.byo import load_byo
from simulation.tasks.catalogue import TASKS, TaskSource, load_task
from simulation.tasks.task import TaskData

__all__ = ["TASKS", "TaskData", "TaskSource", "load_byo", "load_task"]
