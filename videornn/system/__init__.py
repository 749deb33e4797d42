"""Services of the machine: files, worker processes, a lock, a console, devices; knows nothing of videos."""
