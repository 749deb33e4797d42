"""Testing networks: scores of every view of every video, and the numbers, tables and pictures made from them."""
