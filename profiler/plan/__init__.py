"""From a request to an ordered list of cases, with a reason for each one left out."""
