"""Errors of the allocator; the command line makes each one line on standard error and exit code 1.

AllocatorError
├── TraceError         a trace of traffic cannot be read or is too short for what was asked
├── CheckpointError    a saved policy cannot be used: another state layout, or no policy at all
├── TelemetryError     measurements of replicas do not suffice to fit the simulator
└── ScalerError        a scaler was asked about an object that it does not know, or cannot listen
"""


class AllocatorError(Exception):
    """Base of everything the allocator raises on purpose."""


class TraceError(AllocatorError):
    """A trace of traffic cannot be read or is too short for what was asked."""


class CheckpointError(AllocatorError):
    """A saved policy cannot be used: another state layout, or no policy at all."""


class TelemetryError(AllocatorError):
    """Measurements of replicas do not suffice to fit the simulator."""


class ScalerError(AllocatorError):
    """A scaler was asked about an object that it does not know, or cannot listen."""
