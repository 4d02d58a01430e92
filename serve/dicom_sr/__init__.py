"""Structured reports and pictures of heatmaps, as DICOM files beside the image that was classified. Needs highdicom."""
