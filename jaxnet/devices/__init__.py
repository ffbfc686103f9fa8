"""Networks over many devices: pipelines and their schedules."""

from jaxnet.devices.pipeline import PipelineError, pipeline
from jaxnet.devices.schedules import SCHEDULES, Schedule, ScheduleError, Times, schedule

__all__ = ["SCHEDULES", "PipelineError", "Schedule", "ScheduleError", "Times", "pipeline", "schedule"]
