"""Reading and writing: how a file is written, what pictures and tables look like."""
