"""What running on one machine needs: child processes, locks, free ports and atomic files."""
