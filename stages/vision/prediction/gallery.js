// Sorting and filtering of the gallery. Tiles are added as the reader scrolls, so that thousands of images stay usable.
"use strict";

const PAGE = 200; // tiles that are added at once
const { classes, images } = JSON.parse(document.getElementById("data").textContent);
const tiles = document.getElementById("tiles");
const sorting = document.getElementById("sorting");
const shown = document.getElementById("shown");
const more = document.getElementById("more");
const chips = [...document.querySelectorAll(".chip")];

// Each image is [name, index of the class, probability, thumbnail in base64].
const collator = new Intl.Collator(undefined, { numeric: true });
const ranks = new Map([...images].sort((a, b) => collator.compare(a[0], b[0])).map((image, rank) => [image, rank]));
const byName = (a, b) => ranks.get(a) - ranks.get(b);
const ORDERS = {
  name: byName,
  class: (a, b) => a[1] - b[1] || b[2] - a[2] || byName(a, b),
  highest: (a, b) => b[2] - a[2] || byName(a, b),
  lowest: (a, b) => a[2] - b[2] || byName(a, b),
};

let selected = [];
let added = 0;

function makeElement(kind, className, text) {
  const element = document.createElement(kind);
  element.className = className;
  element.textContent = text;
  return element;
}

function makeTile([name, index, probability, thumbnail]) {
  const tile = makeElement("figure", "tile", "");
  tile.title = name;
  const image = document.createElement("img");
  image.alt = name;
  image.decoding = "async";
  if (thumbnail) {
    image.src = `data:image/webp;base64,${thumbnail}`;
    image.onload = () => image.classList.toggle("pixels", image.naturalWidth < 64);
  }
  const percent = `${(100 * probability).toFixed(1)}%`;
  const meter = makeElement("div", "meter", "");
  meter.append(makeElement("span", "", ""));
  meter.firstChild.style.width = percent;
  const caption = document.createElement("figcaption");
  caption.append(
    makeElement("strong", "", classes[index]),
    makeElement("span", "percent", percent),
    makeElement("span", "name", name.slice(name.lastIndexOf("/") + 1)),
  );
  tile.append(image, meter, caption);
  return tile;
}

function addTiles() {
  const next = selected.slice(added, added + PAGE);
  added += next.length;
  tiles.append(...next.map(makeTile));
  more.hidden = added === selected.length;
}

function update() {
  const pressed = chips.find((chip) => chip.getAttribute("aria-pressed") === "true").dataset.index;
  selected = images.filter((image) => pressed === "" || image[1] === Number(pressed)).sort(ORDERS[sorting.value]);
  added = 0;
  tiles.replaceChildren();
  shown.textContent = `${selected.length.toLocaleString("en")} image${selected.length === 1 ? "" : "s"}`;
  addTiles();
}

for (const chip of chips) {
  chip.addEventListener("click", () => {
    for (const other of chips) other.setAttribute("aria-pressed", other === chip);
    update();
  });
}
sorting.addEventListener("change", update);
more.addEventListener("click", addTiles);
new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && addTiles(), {
  rootMargin: "800px",
}).observe(document.getElementById("end"));
update();
