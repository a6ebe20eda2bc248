"""Kinds of files and objects, each behind `Rows`: read by runs of cells."""
