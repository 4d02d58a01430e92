"""The machine: cores, devices, files that appear whole, locks, time limits, signals. Imports no other subpackage."""
