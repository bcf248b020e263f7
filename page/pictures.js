// A grid of pictures; each is a button that triggers 'select' with its index. Nodes are kept from one value to the
// next, so that the keyboard's focus survives while pictures fill in.
const grid = element.querySelector('.ddn-pictures');

function button(index) {
  const made = document.createElement(props.clickable ? 'button' : 'figure');
  const image = document.createElement('img');
  const note = document.createElement('span');
  const bar = document.createElement('i');
  if (props.clickable) {
    made.type = 'button';
    made.addEventListener('click', () => trigger('select', { index }));
  }
  note.className = 'ddn-note';
  bar.className = 'ddn-bar';
  made.append(image, bar, note);
  return made;
}

function show() {
  const items = (props.value && props.value.items) || [];
  grid.style.setProperty('--side', `${props.side}px`);
  grid.classList.toggle('ddn-four', Boolean(props.four));
  if (!items.length && !props.empty) return grid.replaceChildren();
  if (!items.length) {
    const empty = document.createElement('p');
    empty.className = 'ddn-empty';
    empty.textContent = props.empty;
    grid.replaceChildren(empty);
    return;
  }
  if (grid.querySelector('.ddn-empty')) grid.replaceChildren();
  while (grid.children.length > items.length) grid.lastChild.remove();
  while (grid.children.length < items.length) grid.append(button(grid.children.length));
  items.forEach((item, i) => {
    const [image, bar, note] = grid.children[i].children;
    if (image.src !== item.src) image.src = item.src;
    image.alt = item.name;
    grid.children[i].title = item.name;
    grid.children[i].classList.toggle('ddn-chosen', Boolean(item.chosen));
    if (props.clickable) grid.children[i].setAttribute('aria-pressed', Boolean(item.chosen));
    bar.hidden = item.bar === undefined;
    bar.style.setProperty('--part', item.bar || 0);
    note.hidden = item.note === undefined;
    note.textContent = item.note || '';
  });
}

show();
watch('value', show);
