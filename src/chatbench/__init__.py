"""chatbench: turn your own text and dialogues into a chatbot that you own."""

__version__ = "0.1.0"
