"""Who answers: targets, the plan, and the fallback algorithm itself. No I/O, no clock of its own."""
