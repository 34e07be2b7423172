"""An adapter on a MODEL: its terms in attention, its changes of queries and keys, what becomes of it when saved."""
