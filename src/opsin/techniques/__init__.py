"""One technique per file, which has the function's name; a folder is a section of help, gallery and docs."""
