/** Elements, with text as text: nothing a model or a tokenizer says is ever read as markup. */
type Child = Node | string | number | null | undefined | false;
type Attributes = Record<string, string | number | boolean | null | undefined | ((event: never) => void)>;

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  return furnish(document.createElement(tag), attributes, children);
}

export function svg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function furnish<E extends Element>(element: E, attributes: Attributes, children: Child[]): E {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value as EventListener);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.filter(isThere).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

function isThere(child: Child): child is Node | string | number {
  return child !== null && child !== undefined && child !== false;
}

export function replace(parent: Element, ...children: Child[]): void {
  parent.replaceChildren(...children.filter(isThere).map((child) => (child instanceof Node ? child : String(child))));
}

/**
 * As `replace`, but an element that stands where one of its kind stood is that one, changed: no click on it is lost, and
 * no focus. What the new ones would have listened to is not heard: listen on the parent (`clicks`).
 */
export function update(parent: Element, ...children: Child[]): void {
  const wanted = children.filter(isThere).map((child) => (child instanceof Node ? child : document.createTextNode(String(child))));
  renew(parent, wanted);
}

function renew(parent: Node, wanted: Node[]): void {
  const there = [...parent.childNodes];
  wanted.forEach((node, index) => {
    const old = there[index];
    if (!old) parent.appendChild(node);
    else if (old instanceof Element && node instanceof Element && old.tagName === node.tagName) become(old, node);
    else if (old.nodeType === Node.TEXT_NODE && node.nodeType === Node.TEXT_NODE) old.nodeValue !== node.nodeValue && (old.nodeValue = node.nodeValue);
    else parent.replaceChild(node, old);
  });
  for (const old of there.slice(wanted.length)) parent.removeChild(old);
}

function become(old: Element, wanted: Element): void {
  for (const name of old.getAttributeNames()) if (!wanted.hasAttribute(name)) old.removeAttribute(name);
  for (const name of wanted.getAttributeNames()) {
    const value = wanted.getAttribute(name) ?? "";
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  renew(old, [...wanted.childNodes]);
}

/**
 * Clicks on the elements inside that have an attribute, told by its value: of what was pressed, whatever has come in its
 * place before the button was let go.
 */
export function clicks(parent: Element, attribute: string, heard: (value: string) => void, endings: { listen(target: EventTarget, event: string, heard: (event: Event) => void): void }): void {
  let pressed: string | null = null;
  const under = ({ target }: Event): string | null => (target instanceof Element && parent.contains(target) ? (target.closest(`[${attribute}]`)?.getAttribute(attribute) ?? null) : null);
  endings.listen(parent, "pointerdown", (event) => (pressed = under(event)));
  endings.listen(parent, "click", (event) => {
    const at = under(event);
    const value = (event as MouseEvent).detail ? (pressed ?? at) : at; // none is pressed where a key clicks
    pressed = null;
    if (at !== null && value !== null) heard(value);
  });
}

/** A token as people can read it: spaces and line ends seen, control characters named. */
export function visible(token: string): string {
  return token.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, named).replace(/^ | $/g, "·");
}

function named(character: string): string {
  if (character === "\n") return "⏎";
  if (character === "\t") return "⇥";
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}
