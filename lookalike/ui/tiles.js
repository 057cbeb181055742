// Pictures to choose from. Each is a button; its id goes back as the trigger `picked`.
// data: {kind, label, status, step, tiles: [{id, src, alt, first, second, mark, current}]}
export default function ({ parentElement, data, setTriggerValue }) {
  const before = parentElement.querySelector(".all");
  const root = parentElement.activeElement !== undefined ? parentElement : document;
  const hadFocus = before !== null && before.contains(root.activeElement);
  const earlier = before === null ? null : before.dataset.step;

  const all = element("div", "all");
  all.dataset.step = String(data.step);
  const status = element("p", data.status ? "status" : "hidden", data.status);
  status.setAttribute("role", "status");
  const list = element("ul", `tiles ${data.kind}`);
  list.setAttribute("aria-label", data.label);
  for (const tile of data.tiles) list.append(item(tile));
  all.append(status, list);
  if (before === null) parentElement.append(all);
  else before.replaceWith(all);

  if (earlier === null || earlier !== String(data.step)) {
    if (hadFocus) list.querySelector("button:not([aria-current])")?.focus({ preventScroll: true });
    // On a phone they lie below the choices: show that something was found.
    const top = all.getBoundingClientRect().top;
    if (data.follow && (top < 60 || top > 0.6 * window.innerHeight)) {
      all.style.scrollMarginTop = "13rem"; // below the page's own bar, with the way here in sight
      all.scrollIntoView({ block: "start" });
    }
  }

  function item(tile) {
    const button = element("button", tile.mark ?? "");
    button.type = "button";
    if (tile.current) button.setAttribute("aria-current", "true");
    else button.onclick = () => setTriggerValue("picked", tile.id);
    button.title = tile.alt;
    if (tile.src) {
      const image = element("img");
      image.src = tile.src;
      image.alt = tile.alt;
      button.append(image);
    } else {
      button.append(element("span", "missing", "no picture"), element("span", "hidden", tile.alt));
    }
    const text = element("span", "text");
    const first = element("span", "first", tile.first);
    if (tile.mark) {
      const mark = element("span", "mark", tile.mark === "same" ? "✓" : "✗");
      mark.setAttribute("aria-hidden", "true");
      first.append(mark, element("span", "hidden", tile.mark === "same" ? ", same class" : ", another class"));
    }
    text.append(first);
    if (tile.second) text.append(element("span", "second", tile.second));
    button.append(text);
    const li = element("li");
    li.append(button);
    return li;
  }

  function element(name, classes = "", text = "") {
    const made = document.createElement(name);
    made.className = classes;
    made.textContent = text; // never HTML: names of files are anybody's
    return made;
  }
}
