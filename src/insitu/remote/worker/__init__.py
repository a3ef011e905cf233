"""Where blocks run: a process for each model, and one for each job."""
