"""The side that sends blocks: requests, events, downloads, jobs."""
