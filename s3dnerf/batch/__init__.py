"""Many videos from a table of jobs, in processes of this machine or on a Ray cluster."""
