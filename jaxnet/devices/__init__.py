"""Networks over many devices: how parameters lie on a mesh, pipelines and their schedules."""

from jaxnet.devices.pipeline import PipelineError, pipeline
from jaxnet.devices.placement import RULES, Layout, forms_for, layout, make_mesh
from jaxnet.devices.schedules import SCHEDULES, Schedule, ScheduleError, Times, schedule

__all__ = [
    "RULES",
    "SCHEDULES",
    "Layout",
    "PipelineError",
    "Schedule",
    "ScheduleError",
    "Times",
    "forms_for",
    "layout",
    "make_mesh",
    "pipeline",
    "schedule",
]
