"""What a run must survive, tried out: kills, full disks, hostile files, races, damaged data. `python -m torture`."""
