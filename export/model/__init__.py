"""A model file: metadata, GPU sessions, output names, progress. No torch. Imports no other subpackage of export."""
