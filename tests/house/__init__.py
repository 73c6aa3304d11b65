"""What test_house.py is made of."""
