"""What people say for a scene of the second world: synonyms, word orders, tags, long and bare forms, typos,
and the plainest forms of four other languages.

`caption` draws a wording; `plain` is the first one, complete. HELD_OUT sentences are never drawn: they
measure whether other words are understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiny.second.world import COLOURLESS, STILL, Scene

Rng = np.random.Generator


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


# English. Sentences: {c} a colour and a space or nothing, {p} a place or nothing.

SENTENCES: dict[str, tuple[str, ...]] = {
    "waterfall": _list(
        "a waterfall flows {p} | water falls down the rocks {p} | a waterfall {p} | "
        "water cascades over a cliff {p} |"
        "a cascade {p} | the falls {p} | water pours down the rock {p} | "
        "a stream plunges over the edge {p} |"
        "rushing water {p} | water is falling {p} | two waterfalls {p} | a mountain stream drops {p}"
    ),
    "smile": _list(
        "a person with {c}hair smiles {p} | a woman with {c}hair is smiling {p} | "
        "a smile on a face with {c}hair {p} |"
        "a man with {c}hair smiles {p} | a girl with {c}hair grins {p} | a boy with {c}hair laughs {p} |"
        "a happy face with {c}hair {p} | somebody with {c}hair beams {p} | a {c}haired woman smiles {p} |"
        "a lady with {c}hair looks happy {p} | a portrait of a smiling person with {c}hair {p} |"
        "a {c}haired man is grinning {p} | a cheerful person with {c}hair {p} | "
        "a friendly face with {c}hair {p}"
    ),
    "fireworks": _list(
        "{c}fireworks explode {p} | {c}fireworks in the night sky {p} | {c}fireworks {p} | "
        "a {c}firework bursts {p} |"
        "{c}rockets burst {p} | {c}fireworks light up the sky {p} | a {c}fireworks display {p} |"
        "{c}sparks in the sky {p} | {c}pyrotechnics {p} | new year with {c}fireworks {p} | "
        "{c}firecrackers {p}"
    ),
    "horse": _list(
        "a {c}horse runs {p} | a {c}horse is running {p} | a {c}horse gallops {p} | a {c}pony trots {p} |"
        "a {c}stallion races {p} | a {c}mare gallops {p} | a {c}horse is galloping {p} | "
        "a {c}steed runs {p} |"
        "a wild {c}horse {p} | a {c}pony runs {p} | a {c}foal is running {p} | a fast {c}horse {p} |"
        "a {c}mustang gallops {p} | a galloping {c}horse {p} | a running {c}pony {p}"
    ),
    "guitar": _list(
        "a man plays a {c}guitar {p} | a person is playing a {c}guitar {p} | a {c}guitar is played {p} |"
        "a woman plays the {c}guitar {p} | a musician with a {c}guitar {p} | "
        "a guitarist strums a {c}guitar {p} |"
        "somebody strums a {c}guitar {p} | a girl plays a {c}guitar {p} | "
        "a boy plays an electric {c}guitar {p} |"
        "a singer with a {c}guitar {p} | a guitar player with a {c}guitar {p} | music on a {c}guitar {p} |"
        "a man makes music with a {c}guitar {p} | a man is playing an acoustic {c}guitar {p}"
    ),
    "birds": _list(
        "{c}birds fly {p} | {c}birds are flying {p} | a flock of {c}birds {p} | {c}birds soar {p} | "
        "{c}gulls fly {p} |"
        "{c}seagulls glide {p} | {c}doves fly {p} | {c}ducks fly {p} | {c}geese fly {p} | "
        "flying {c}birds {p} |"
        "some {c}birds flap their wings {p} | {c}parrots fly {p} | {c}crows are flying {p} | "
        "{c}sparrows fly {p} |"
        "a swarm of {c}birds {p} | a few {c}birds in flight {p} | {c}pigeons fly {p} | {c}swallows fly {p}"
    ),
    "helicopter": _list(
        "a {c}helicopter flies {p} | a {c}helicopter is flying {p} | a {c}helicopter {p} | "
        "a {c}chopper flies {p} |"
        "a {c}helicopter hovers {p} | a flying {c}helicopter {p} | a {c}copter flies {p} | "
        "a {c}aircraft with a rotor {p} |"
        "a {c}rescue helicopter {p} | the {c}helicopter takes off {p} | a {c}chopper hovers {p} | "
        "a {c}heli {p}"
    ),
    "rain": _list(
        "rain falls on a {c}umbrella {p} | a person with a {c}umbrella walks in the rain {p} | "
        "rain and a {c}umbrella {p} |"
        "a man walks in the rain with a {c}umbrella {p} | "
        "a woman with a {c}umbrella in the rain {p} | it rains on a {c}umbrella {p} |"
        "it is raining on a {c}umbrella {p} | somebody under a {c}umbrella {p} | "
        "a rainy day with a {c}umbrella {p} |"
        "a {c}umbrella in a storm {p} | raindrops on a {c}umbrella {p} | "
        "a child with a {c}umbrella in the shower {p} |"
        "heavy rain and a {c}umbrella {p} | drizzle on a {c}umbrella {p} | a {c}brolly in the rain {p}"
    ),
    STILL: _list("a picture | shapes | a still image | nothing moves | a logo | abstract shapes | writing"),
}
HELD_OUT: dict[str, tuple[str, ...]] = {
    "waterfall": _list("white water tumbles down the cliff {p} | the water of a cascade pours {p}"),
    "smile": _list("the {c}haired girl looks cheerful {p} | a grinning boy with {c}hair {p}"),
    "fireworks": _list("the sky is lit by {c}rockets {p} | a display of {c}pyrotechnics {p}"),
    "horse": _list("the {c}pony is galloping {p} | a racing {c}stallion {p}"),
    "guitar": _list("a {c}guitar in the hands of a musician {p} | a lady strums the {c}guitar {p}"),
    "birds": _list("a few {c}gulls soar {p} | the {c}geese are in flight {p}"),
    "helicopter": _list("the {c}chopper is hovering {p} | a {c}copter takes off {p}"),
    "rain": _list("a lady walks under a {c}brolly in the drizzle {p} | a {c}umbrella on a rainy day {p}"),
}
NOUNS: dict[str, tuple[str, ...]] = {
    "waterfall": _list("waterfall | cascade | falling water"),
    "smile": _list("smile | smiling face | face | portrait"),
    "fireworks": _list("fireworks | firework | rockets"),
    "horse": _list("horse | pony | stallion | running horse"),
    "guitar": _list("guitar | guitar player | guitarist | man with guitar"),
    "birds": _list("birds | flock | flying birds | seagulls"),
    "helicopter": _list("helicopter | chopper | copter"),
    "rain": _list("rain | umbrella | rainy day | person with umbrella"),
    STILL: _list("picture | shapes | still image"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "white": _list("white | white | snow white | ivory | cream | pale"),
    "black": _list("black | black | jet black | ebony | dark"),
    "brown": _list("brown | brown | chestnut | bay | chocolate | tan"),
    "red": _list("red | red | crimson | scarlet | ruby | bright red | cherry"),
    "blue": _list("blue | blue | azure | navy | cobalt | sapphire | bright blue"),
    "green": _list("green | green | emerald | lime | olive | jade"),
    "yellow": _list("yellow | yellow | golden | gold | blonde | lemon"),
    "purple": _list("purple | purple | violet | lilac | lavender | magenta"),
    "orange": _list("orange | orange | tangerine | amber | ginger"),
    "pink": _list("pink | pink | rose | salmon | rosy"),
    "grey": _list("grey | gray | silver | ash | grey"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "meadow": _list(
        "in the meadow | on the grass | in a green field | on a pasture | in the countryside | in the park"
    ),
    "forest": _list(
        "in the forest | near the trees | in the woods | among trees | in a wood | in the jungle"
    ),
    "desert": _list("in the desert | on the sand | over the dunes | in the sahara | among sand dunes"),
    "sea": _list(
        "by the sea | at the beach | on the shore | near the ocean | at the seaside | by the water | "
        "on the coast"
    ),
    "snow": _list(
        "in the snow | in winter | in a snowy landscape | on a snowy day | in the cold | "
        "in a winter wonderland"
    ),
    "city": _list(
        "in the city | in the town | downtown | in front of skyscrapers | between tall buildings | "
        "on the street"
    ),
    "mountains": _list(
        "in the mountains | under the mountains | in the alps | near snowy peaks | among the hills"
    ),
    "mars": _list("on Mars | on the red planet | on another planet | on planet mars | in space on mars"),
    "sunset": _list(
        "at sunset | in the evening | at dusk | in the sunset | at twilight | as the sun goes down"
    ),
    "night": _list(
        "at night | in the dark | by moonlight | under the stars | in the moonlight | at midnight"
    ),
    "pink": _list(
        "under a pink sky | in the pink sky | against a pink sky | in a pink world | under rosy clouds"
    ),
}
PLACE_TAGS: dict[str, tuple[str, ...]] = {
    "meadow": _list("meadow | grass | field"), "forest": _list("forest | woods | trees | jungle"),
    "desert": _list("desert | dunes | sand"), "sea": _list("sea | beach | ocean | coast"),
    "snow": _list("snow | winter | snowy"), "city": _list("city | town | skyline | urban"),
    "mountains": _list("mountains | alps | peaks"), "mars": _list("mars | red planet"),
    "sunset": _list("sunset | evening | dusk"), "night": _list("night | moonlight | stars"),
    "pink": _list("pink sky | pink clouds"),
}  # fmt: skip
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "realistic": _list(
        "realistic style | realistic | photo | photorealistic | a photograph | real life | lifelike"
    ),
    "pixel-art": _list(
        "pixel art style | pixel art | 8 bit | pixels | retro game | pixelated | a video game"
    ),
    "claymation": _list("claymation style | claymation | clay | plasticine | clay animation | stop motion"),
    "cartoon": _list("cartoon style | cartoon | a comic | animated | anime | a drawing | cel shaded"),
}
CAMERA_WORDS: dict[str, tuple[str, ...]] = {
    "left": _list("the camera pans left | pan left | the camera moves to the left"),
    "right": _list("the camera pans right | pan right | the camera moves to the right"),
    "up": _list("the camera tilts up | tilt up | the camera moves up"),
    "down": _list("the camera tilts down | tilt down | the camera moves down"),
    "in": _list("the camera zooms in | zoom in | closer and closer | dolly in"),
    "out": _list("the camera zooms out | zoom out | farther and farther | dolly out"),
    STILL: _list("a static camera | the camera does not move | fixed camera"),
}
LATE_COLOURS = _list("the colour is {} | coloured {} | it is {} | {} in colour | all in {}")
OPENINGS = _list(
    "a video of | a clip of | footage of | please show me | i would like to see | a short film of | "
    "show | make |"
    "an animation of | a beautiful scene of | there is | this is | we see | imagine | create a video of"
)
ENDINGS = _list(
    "high quality | 4k | beautiful | very detailed | masterpiece | cinematic | in motion | "
    "best quality | wide shot |"
    "close up | a lovely day | sharp focus | dramatic light | award winning | hd | smooth motion | "
    "colourful"
)
FILLERS = _list(
    "very | really | just | quickly | slowly | lovely | big | little | old | young | beautiful | "
    "nice | strange | magic |"
    "quiet | wonderful | sweet | calm | proud | funny | great | tiny | huge | pretty | elegant | "
    "free | lonely | sunny"
)


@dataclass(frozen=True)
class Language:
    """The plainest forms of another language. Colours do not agree with their nouns, as if hurried."""

    sentences: dict[str, tuple[str, ...]]
    colours: dict[str, str]
    places: dict[str, str]
    styles: dict[str, str]


def _language(sentences: str, colours: str, places: str, styles: str) -> Language:
    kinds = [kind for kind in SENTENCES if kind != STILL]
    rows = [tuple(x.strip() for x in row.split(";")) for row in sentences.split("|")]
    names = (kinds, COLOUR_WORDS, PLACE_WORDS, STYLE_WORDS)
    found = [
        dict(zip(keys, values, strict=True))
        for keys, values in zip(names[1:], map(_list, (colours, places, styles)), strict=True)
    ]
    return Language(dict(zip(kinds, rows, strict=True)), *found)


LANGUAGES: dict[str, Language] = {
    "de": _language(
        "ein Wasserfall {p}; Wasser fällt {p} | eine Frau mit {c}Haaren lächelt {p}; "
        "ein Lächeln {p}; ein Mann mit {c}Haaren lächelt {p} |"
        "{c}Feuerwerk {p}; ein {c}Feuerwerk {p} | ein {c}Pferd läuft {p}; "
        "ein {c}Pferd galoppiert {p}; ein {c}Pferd rennt {p} |"
        "ein Mann spielt {c}Gitarre {p}; eine {c}Gitarre {p} | {c}Vögel fliegen {p}; "
        "ein Schwarm {c}Vögel {p} |"
        "ein {c}Hubschrauber fliegt {p}; ein {c}Helikopter {p} | Regen auf einem {c}Regenschirm {p}; "
        "es regnet auf einen {c}Schirm {p}",
        "weiße | schwarze | braune | rote | blaue | grüne | gelbe | lila | orange | rosa | graue",
        "auf der Wiese | im Wald | in der Wüste | am Meer | im Schnee | in der Stadt | "
        "in den Bergen | auf dem Mars |"
        "bei Sonnenuntergang | in der Nacht | unter einem rosa Himmel",
        "realistisch | Pixelkunst | Knetanimation | Zeichentrick",
    ),
    "fr": _language(
        "une cascade {p}; l'eau tombe {p} | une femme aux cheveux {c}sourit {p}; un sourire {p}; "
        "un homme aux cheveux {c}sourit {p} |"
        "feux d'artifice {c}{p}; un feu d'artifice {c}{p} | un cheval {c}court {p}; "
        "un cheval {c}galope {p} |"
        "un homme joue de la guitare {c}{p}; une guitare {c}{p} | des oiseaux {c}volent {p} |"
        "un hélicoptère {c}vole {p}; un hélicoptère {c}{p} | la pluie sur un parapluie {c}{p}; "
        "il pleut sur un parapluie {c}{p}",
        "blanc | noir | marron | rouge | bleu | vert | jaune | violet | orange | rose | gris",
        "dans le pré | dans la forêt | dans le désert | au bord de la mer | dans la neige | dans la ville |"
        "dans les montagnes | sur Mars | au coucher du soleil | la nuit | sous un ciel rose",
        "réaliste | pixel art | pâte à modeler | dessin animé",
    ),
    "es": _language(
        "una cascada {p}; el agua cae {p} | una mujer de pelo {c}sonríe {p}; una sonrisa {p}; "
        "un hombre de pelo {c}sonríe {p} |"
        "fuegos artificiales {c}{p} | un caballo {c}corre {p}; un caballo {c}galopa {p} |"
        "un hombre toca una guitarra {c}{p}; una guitarra {c}{p} | pájaros {c}vuelan {p} |"
        "un helicóptero {c}vuela {p} | lluvia sobre un paraguas {c}{p}; llueve sobre un paraguas {c}{p}",
        "blanco | negro | marrón | rojo | azul | verde | amarillo | morado | naranja | rosa | gris",
        "en el prado | en el bosque | en el desierto | en la playa | en la nieve | en la ciudad | "
        "en las montañas |"
        "en Marte | al atardecer | de noche | bajo un cielo rosa",
        "realista | arte de píxeles | plastilina | dibujos animados",
    ),
    "it": _language(
        "una cascata {p}; l'acqua cade {p} | una donna con i capelli {c}sorride {p}; un sorriso {p} |"
        "fuochi d'artificio {c}{p} | un cavallo {c}corre {p}; un cavallo {c}galoppa {p} |"
        "un uomo suona una chitarra {c}{p}; una chitarra {c}{p} | uccelli {c}volano {p} |"
        "un elicottero {c}vola {p} | pioggia su un ombrello {c}{p}; piove su un ombrello {c}{p}",
        "bianco | nero | marrone | rosso | blu | verde | giallo | viola | arancione | rosa | grigio",
        "nel prato | nella foresta | nel deserto | al mare | nella neve | in città | in montagna | "
        "su Marte |"
        "al tramonto | di notte | sotto un cielo rosa",
        "realistico | pixel art | plastilina | cartone animato",
    ),
}


def pick(rng: Rng, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def plain(scene: Scene) -> str:
    """The scene in its first wording, complete: "a white horse runs on Mars, cartoon style"."""
    colour = "" if scene.category in COLOURLESS else scene.colour + " "
    place = PLACE_WORDS[scene.place][0]
    sentence = tidy(SENTENCES[scene.category][0].format(c=colour, p=place))
    camera = "" if scene.camera == STILL else f", {CAMERA_WORDS[scene.camera][0]}"
    return f"{sentence}{camera}, {STYLE_WORDS[scene.style][0]}"


def held_out(scene: Scene, rng: Rng) -> str:
    """The scene in a sentence that training never sees; known words in it all the same."""
    colour = "" if scene.category in COLOURLESS else pick(rng, COLOUR_WORDS[scene.colour]) + " "
    sentence = pick(rng, HELD_OUT[scene.category])
    place, style = pick(rng, PLACE_WORDS[scene.place]), STYLE_WORDS[scene.style][0]
    return f"{tidy(sentence.format(c=colour, p=place))}, {style}"


def caption(scene: Scene, rng: Rng, drop: float = 0.0) -> str:
    """A wording that `rng` draws. Colour, place and style are each left out with probability `drop`; how the
    camera moves is always said, for nothing else tells it.
    """
    if scene.category == STILL:
        text = pick(rng, SENTENCES[STILL] if rng.random() < 0.5 else sentences_of_any(rng))
        return tidy(f"{text} {camera_words(scene, rng)}".format(c="", p=""))
    has_colour, has_place, has_style = (rng.random(3) >= drop).tolist()
    return wording(scene, rng, has_colour, has_place, has_style)


def wording(scene: Scene, rng: Rng, has_colour: bool, has_place: bool, has_style: bool) -> str:
    """A wording of a scene in which something moves, that says some of its facts."""
    has_colour = has_colour and scene.category not in COLOURLESS
    form = rng.random()
    if form < 0.14:
        text = tags(scene, rng, has_colour, has_place, has_style)
    elif form < 0.30:
        text = translated(scene, rng, has_colour, has_place, has_style)
    else:
        text = sentence(scene, rng, has_colour, has_place, has_style)
    if rng.random() < 0.12:
        text = misspelt(text, rng)
    return {0: text.upper(), 1: text.capitalize(), 2: text + "."}.get(int(rng.integers(8)), text)


def sentences_of_any(rng: Rng) -> tuple[str, ...]:
    return SENTENCES[pick(rng, tuple(SENTENCES))]


def sentence(scene: Scene, rng: Rng, has_colour: bool, has_place: bool, has_style: bool) -> str:
    colour = pick(rng, COLOUR_WORDS[scene.colour])
    # "the colour is red" at the end, in place of an adjective
    late = has_colour and rng.random() < 0.12
    if rng.random() < 0.25:
        noun = pick(rng, NOUNS[scene.category])
        text = f"{{c}}{noun} {{p}}" if scene.category != "smile" else f"{noun}, {{c}}hair {{p}}"
        if not has_colour or late:
            text = f"{noun} {{p}}"
    else:
        text = pick(rng, SENTENCES[scene.category])
    place = pick(rng, PLACE_WORDS[scene.place]) if has_place else ""
    first = has_place and rng.random() < 0.2
    if first:  # "on Mars a white horse runs", "on Mars, a white horse runs"
        text = f"{place}{pick(rng, (',', ''))} {text}"
    adjective = colour + " " if has_colour and not late else ""
    if rng.random() < 0.15:
        adjective = f"{pick(rng, FILLERS)} {adjective}"
    text = text.format(c=adjective, p="" if first else place)
    if rng.random() < 0.2:
        text = f"{pick(rng, OPENINGS)} {text}"
    parts = [text]
    if late:
        parts.append(pick(rng, LATE_COLOURS).format(colour))
    if words := camera_words(scene, rng):
        parts.append(words)
    parts += [pick(rng, ENDINGS) for _ in range(int(rng.integers(1, 4)))] if rng.random() < 0.2 else []
    style = pick(rng, STYLE_WORDS[scene.style]) if has_style else ""
    if style and rng.random() < 0.25:
        joined = pick(rng, ("{s} of {t}", "{s}, {t}", "{s}: {t}")).format(s=style, t=parts[0])
        parts[0] = joined
    elif style:
        style = f"in the style of {style}" if rng.random() < 0.12 else style
        parts.insert(int(rng.integers(1, len(parts) + 1)) if rng.random() < 0.3 else len(parts), style)
    return tidy(", ".join(parts))


def tags(scene: Scene, rng: Rng, has_colour: bool, has_place: bool, has_style: bool) -> str:
    """ "horse, red, desert, cartoon", in any order, or the words alone."""
    noun = pick(rng, NOUNS[scene.category])
    words = [noun]
    if has_colour:
        colour = pick(rng, COLOUR_WORDS[scene.colour])
        if rng.random() < 0.5 and scene.category != "smile":
            words = [f"{colour} {noun}"]
        else:
            words.append(colour + (" hair" if scene.category == "smile" else ""))
    words += [pick(rng, PLACE_TAGS[scene.place])] * has_place
    words += [pick(rng, STYLE_WORDS[scene.style])] * has_style
    words += [camera_words(scene, rng)] if scene.camera != STILL else []
    order = rng.permutation(len(words))
    return tidy(pick(rng, (", ", " ", ", ")).join(words[i] for i in order))


def translated(scene: Scene, rng: Rng, has_colour: bool, has_place: bool, has_style: bool) -> str:
    language = LANGUAGES[pick(rng, tuple(LANGUAGES))]
    text = pick(rng, language.sentences[scene.category])
    colour = language.colours[scene.colour] + " " if has_colour else ""
    text = text.format(c=colour, p=language.places[scene.place] if has_place else "")
    style = f", {pick(rng, (language.styles[scene.style], STYLE_WORDS[scene.style][0]))}" if has_style else ""
    camera = f", {camera_words(scene, rng)}" if scene.camera != STILL else ""
    return tidy(text + camera + style)


def camera_words(scene: Scene, rng: Rng) -> str:
    """How the camera moves; that it stands still is rarely worth a word."""
    if scene.camera == STILL and rng.random() > 0.06:
        return ""
    return pick(rng, CAMERA_WORDS[scene.camera])


def misspelt(text: str, rng: Rng) -> str:
    """One longer word with two letters swapped, one dropped, doubled, or another in its place."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not long:
        return text
    at = long[int(rng.integers(len(long)))]
    word, i = words[at], int(rng.integers(1, len(words[at]) - 1))
    words[at] = (
        word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        word[:i] + word[i + 1 :],
        word[:i] + word[i] + word[i:],
        word[:i] + pick(rng, "abcdefghijklmnopqrstuvwxyz") + word[i + 1 :],
    )[int(rng.integers(4))]
    return " ".join(words)


def tidy(text: str) -> str:
    """Single spaces, none before a comma; "an" before a vowel."""
    text = " ".join(text.split()).replace(" ,", ",")
    words = text.split(" ")
    for i, word in enumerate(words[:-1]):
        if word == "a" and words[i + 1][:1].lower() in tuple("aeiou"):
            words[i] = "an"
    return " ".join(words)
