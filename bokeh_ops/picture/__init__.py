"""Pictures: colour spaces and the transfer of colour statistics, contact sheets."""
