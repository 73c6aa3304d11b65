"""What flows through the product: requests, messages, events and answers, in nobody's dialect."""
