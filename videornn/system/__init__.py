"""What any program needs of a machine: files, worker processes, a lock, a console, devices; knows nothing of videos."""
