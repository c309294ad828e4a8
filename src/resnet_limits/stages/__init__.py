"""One function per rule of the workflow: (experiment, cell, inputs) to dataset."""
