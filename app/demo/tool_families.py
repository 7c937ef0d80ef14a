"""Owns the everyday tools that documentation and demos use (weather, orders, mail ...) and how people ask for them.

Knows no made-up tools and no conversations: see tool_corpus.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter of a family: the names it may have, the kind of its value, whether it may be required."""

    names: tuple[str, ...]
    kind: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """Tools that do the same thing under different names, and questions; `{0}` is the value of the first slot."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    slots: tuple[Slot, ...]
    questions: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PLACE = _words("location location city city place town")

FAMILIES = (
    Family(
        _words("get_weather get_weather get_current_weather weather current_weather get_forecast weather_lookup getWeather"),
        (
            "Get the weather",
            "Get the current weather in a given location",
            "Get current temperature for a given location.",
            "Returns the weather of a city",
            "Look up the weather forecast",
            "Get the weather in a city",
        ),
        (Slot(_PLACE, "city"), Slot(("unit", "units"), "temperature_unit", optional=True)),
        (
            "What is the weather in {0}?",
            "What's the weather like in {0} today?",
            "What's the weather in {0}?",
            "What is the weather like in {0}?",
            "How is the weather in {0}?",
            "weather in {0}",
            "What's the weather like in {0}?",
            "Is it raining in {0}?",
            "Tell me the weather in {0}.",
            "How warm is it in {0} today?",
            "Weather {0}",
            "What is the temperature in {0}?",
            "What is the weather in {0} in {1}?",
            "What's the temperature in {0} in {1}?",
            "Tell me the weather in {0}, in {1} please.",
            "What is the weather in {0} today?",
            "Will it rain in {0} tomorrow?",
            "Do I need an umbrella in {0}?",
            "Get the weather for {0}",
            "Give me the forecast for {0}",
            "How cold is it in {0}?",
            "What's the weather like in {0} right now?",
            "Please check the weather in {0}.",
            "what is it like outside in {0}",
        ),
    ),
    Family(
        _words("get_time get_current_time current_time time_in_city world_clock local_time"),
        ("Get the current time in a city", "Returns the local time", "Tell the time in a given time zone"),
        (Slot((*_PLACE, "timezone"), "city"),),
        (
            "What time is it in {0}?",
            "Tell me the time in {0}.",
            "What is the local time in {0}?",
            "time in {0}",
            "What's the time in {0} now?",
            "How late is it in {0}?",
        ),
    ),
    Family(
        _words("convert_currency currency_convert exchange convert_money get_exchange"),
        ("Convert money from one currency to another", "Currency conversion", "Convert an amount between currencies"),
        (
            Slot(("amount", "value"), "amount"),
            Slot(("from_currency", "from", "source", "base"), "currency"),
            Slot(("to_currency", "to", "target"), "currency"),
        ),
        (
            "Convert {0} {1} to {2}.",
            "How much is {0} {1} in {2}?",
            "What is {0} {1} in {2}?",
            "Change {0} {1} into {2}",
            "Please convert {0} {1} to {2}",
            "{0} {1} in {2}",
        ),
    ),
    Family(
        _words("lookup_order get_order order_status find_order track_order get_order_status"),
        ("Look up an order by its id", "Get the status of an order", "Find an order", "Track the delivery of an order"),
        (Slot(("order_id", "order_id", "id", "order", "order_number"), "id"),),
        (
            "Where is order {0}?",
            "What is the status of order {0}?",
            "Look up order {0}.",
            "Track my order {0}",
            "Please find order {0}",
            "Has order {0} been shipped?",
            "Where is my order {0}?",
            "Show me order {0}",
            "What about order number {0}?",
            "When will order {0} arrive?",
        ),
    ),
    Family(
        _words("send_email send_mail email send_message mail_to write_email"),
        ("Send an email", "Send an email to a given recipient", "Write a message to somebody"),
        (
            Slot(("to", "recipient", "address"), "email"),
            Slot(("body", "text", "message"), "text", optional=True),
            Slot(("subject", "title"), "word", optional=True),
        ),
        (
            'Send an email to {0} that says "{1}".',
            "Send {0} the message '{1}'",
            'Write to {0}: "{1}"',
            "Send an email to {0}.",
            'Email {0} with the subject {2} and the text "{1}".',
            "Send a mail to {0} with subject {2}",
        ),
    ),
    Family(
        _words("add multiply subtract divide add_numbers sum_numbers multiply_numbers calculate_sum"),
        ("Compute with two numbers", "Add or multiply two numbers", "Arithmetic with two numbers"),
        (Slot(("a", "x", "first", "left"), "number"), Slot(("b", "y", "second", "right"), "number")),
        (
            "What is {0} plus {1}?",
            "What is {0} times {1}?",
            "Add {0} and {1}.",
            "Multiply {0} by {1}",
            "{0} + {1}",
            "What is the sum of {0} and {1}?",
            "How much is {0} times {1}?",
            "Compute {0} and {1}",
            "{0} * {1}",
        ),
    ),
    Family(
        _words("search web_search search_web google find_information lookup search_docs knowledge_search"),
        ("Search the web", "Search for information", "Query a knowledge base to retrieve relevant information"),
        (
            Slot(("query", "q", "keywords", "search_term"), "words"),
            Slot(("limit", "max_results"), "int", optional=True),
        ),
        (
            "Search for {0}.",
            "Search the web for {0}",
            "Find information about {0}",
            "Look for {0}",
            "Please search for {0}",
            "Search for {0} and return {1} results",
            "Show me {1} results for {0}",
        ),
    ),
    Family(
        _words("set_reminder create_reminder remind add_reminder set_alarm"),
        ("Create a reminder", "Remind the user of something", "Set an alarm with a text"),
        (Slot(("text", "task", "message"), "text"), Slot(("time", "when", "at"), "clock")),
        (
            'Remind me at {1}: "{0}".',
            "Set a reminder '{0}' at {1}",
            'Please remind me of "{0}" at {1}.',
            'At {1} remind me: "{0}"',
        ),
    ),
    Family(
        _words("translate translate_text translator to_language"),
        ("Translate a text", "Translate text into another language"),
        (Slot(("text", "sentence", "source_text"), "text"), Slot(("target_language", "language", "to"), "language")),
        ('Translate "{0}" to {1}.', "Translate '{0}' into {1}", 'How do you say "{0}" in {1}?', 'Say "{0}" in {1}'),
    ),
    Family(
        _words("get_stock_price stock_price get_quote stock_quote ticker_price"),
        ("Get the price of a stock", "Returns the current stock price", "Look up a stock by its symbol"),
        (Slot(("symbol", "ticker", "company"), "symbol"),),
        (
            "What is the stock price of {0}?",
            "How is {0} doing?",
            "Get the price of {0} stock",
            "Stock price of {0}",
            "What is {0} trading at?",
            "How much is a share of {0}?",
        ),
    ),
    Family(
        _words("turn_on_light set_light light_control switch_light control_light set_lamp"),
        ("Switch a light", "Control the light of a room", "Turn a light on or off"),
        (Slot(("room", "place", "area"), "room"), Slot(("state", "mode", "power"), "on_off")),
        (
            "Turn {1} the light in the {0}.",
            "Turn the {0} light {1}",
            "Switch the light in the {0} {1}",
            "Please turn {1} the lights in the {0}",
        ),
    ),
    Family(
        _words("book_flight find_flights search_flights get_flights flight_search"),
        ("Find flights between two cities", "Book a flight", "Search for flights"),
        (
            Slot(("origin", "from", "from_city", "departure"), "city"),
            Slot(("destination", "to", "to_city", "arrival"), "city"),
            Slot(("date", "day"), "date", optional=True),
        ),
        (
            "Find a flight from {0} to {1}.",
            "Book a flight from {0} to {1} on {2}.",
            "I want to fly from {0} to {1}",
            "Flights from {0} to {1} on {2}",
            "Get me from {0} to {1}",
            "Are there flights from {0} to {1}?",
        ),
    ),
    Family(
        _words("book_table reserve_table make_reservation book_restaurant reserve"),
        ("Reserve a table in a restaurant", "Book a table"),
        (
            Slot(("people", "guests", "party_size", "seats"), "int"),
            Slot(("time", "at"), "clock"),
            Slot(("restaurant", "name"), "name", optional=True),
        ),
        (
            "Book a table for {0} at {1}.",
            "Reserve a table for {0} people at {1}",
            "A table for {0} at {2} at {1}, please.",
            "I need a table for {0} people at {1}",
        ),
    ),
    Family(
        _words("play_music play_song play start_music play_track"),
        ("Play a song", "Play music", "Start to play a song or an artist"),
        (Slot(("song", "title", "query", "artist"), "words"),),
        ("Play {0}.", "Play the song {0}", "I want to hear {0}", "Please play {0}", "Put on {0}"),
    ),
    Family(
        _words("get_user find_user lookup_user get_customer user_info"),
        ("Get a user by id", "Find a user", "Look up a customer"),
        (Slot(("user_id", "id", "customer_id", "user"), "id"),),
        (
            "Who is user {0}?",
            "Show me user {0}.",
            "Find user {0}",
            "Get the details of customer {0}",
            "Look up user {0}",
        ),
    ),
)
