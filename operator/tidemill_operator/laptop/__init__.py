"""What `tidemill up` is: pipelines on one machine."""
