// Buttons with thumbnails. `element`, `props`, `trigger` and `watch` come from gr.HTML.
const strip = element.querySelector(".rc-strip");

function draw() {
  const { items = [], chosen = null } = props.value || {};
  strip.replaceChildren(...items.map((item, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "rc-thumb";
    button.setAttribute("aria-pressed", String(index === chosen));
    const image = document.createElement("img");
    image.src = item.picture;
    image.alt = "";
    const title = document.createElement("span");
    title.textContent = item.title;
    button.append(image, title);
    button.addEventListener("click", () => trigger("select", { index }));
    return button;
  }));
}

watch("value", draw);
draw();
