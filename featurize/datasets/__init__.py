"""The images of a data set: files, classes, groups and splits. May import system."""
