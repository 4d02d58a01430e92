"""DICOM files to 8-bit images: the tags, one frame of pixels, its grey levels. Needs the extra ``dicom``."""
