"""Further columns of the images: kinds, tags of DICOM files, what a cache gets. Imports datasets, images and cache."""
