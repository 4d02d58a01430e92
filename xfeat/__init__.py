"""Image classifiers from a frozen EfficientNet: featurize, head, export, serve."""

from xfeat.featurize.system.privacy import turn_off_telemetry

turn_off_telemetry()  # here, since every command, worker and import of this package begins with this file
