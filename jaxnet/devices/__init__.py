"""Networks over many devices: pipelines and their schedules."""

from jaxnet.devices.pipeline import pipeline
from jaxnet.devices.schedules import SCHEDULES, Schedule, schedule

__all__ = ["SCHEDULES", "Schedule", "pipeline", "schedule"]
