// The script of a page. It makes single values readable; without it, nothing is missing but that. A backslash at the
// end of a line only keeps lines short here; it is not in the page.
//
// One mark of each chart can be reached with Tab. The arrow keys move the focus itself to other marks, so that a screen
// reader says their texts without a live region. A tip shows the text of the mark that has the focus or the pointer,
// until Escape.
export const script = `
const tip = document.body.appendChild(document.createElement('div'));
tip.className = 'tip';
tip.hidden = true;
tip.setAttribute('aria-hidden', 'true');
const hide = () => { tip.hidden = true; };
const show = (mark) => {
    tip.textContent = mark.getAttribute('aria-label');
    tip.hidden = false;
    tip.style.left = '0';
    const at = mark.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.x + at.width / 2 - tip.offsetWidth / 2, \
document.documentElement.clientWidth - tip.offsetWidth - 8));
    const above = at.y - tip.offsetHeight - 8;
    tip.style.left = left + 'px';
    tip.style.top = (above >= 8 ? above : at.bottom + 8) + 'px';
};
addEventListener('keydown', (event) => { if (event.key === 'Escape') hide(); });
addEventListener('scroll', () => {
    if (!tip.hidden && document.activeElement.matches('path')) show(document.activeElement); else hide();
}, true);
for (const svg of document.querySelectorAll('svg')) {
    const marks = [...svg.querySelectorAll('path[role=graphics-symbol]')];
    let current = marks[0];
    const enter = (mark) => {
        current.setAttribute('tabindex', '-1');
        current = mark;
        current.setAttribute('tabindex', '0');
    };
    const middle = (mark) => { const box = mark.getBoundingClientRect(); return { x: box.x + box.width / 2, \
y: box.y + box.height / 2 }; };
    // the nearest one above or below, first of all in the same column
    const vertical = (down) => {
        const from = middle(current);
        let best, least = Infinity;
        for (const mark of marks) {
            const { x, y } = middle(mark);
            const ahead = (y - from.y) * down;
            const distance = ahead + 8 * Math.abs(x - from.x);
            if (ahead > 1 && distance < least) [best, least] = [mark, distance];
        }
        return best;
    };
    const targets = {
        ArrowRight: () => marks[marks.indexOf(current) + 1], ArrowLeft: () => marks[marks.indexOf(current) - 1],
        ArrowDown: () => vertical(1), ArrowUp: () => vertical(-1), Home: () => marks[0], End: () => marks.at(-1)
    };
    for (const mark of marks) {
        mark.setAttribute('tabindex', mark === current ? '0' : '-1');
        mark.addEventListener('focus', () => { enter(mark); show(mark); });
        mark.addEventListener('blur', hide);
        mark.addEventListener('pointerenter', () => show(mark));
        mark.addEventListener('pointerleave', hide);
        mark.addEventListener('click', () => mark.focus());
    }
    svg.addEventListener('keydown', (event) => {
        if (!(event.key in targets) || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        targets[event.key]()?.focus();
    });
}
const hint = document.createElement('p');
hint.className = 'hint';
hint.textContent = 'Single values in the charts: point at them, or press Tab and then the arrow keys.';
document.querySelector('.figures').before(hint);
`;

// The script of a page that another one takes the place of. It reads the page again from time to time, wherever that
// is, a file or a server's, unless the reader says no, and leaves open what the reader has opened. What is to outlive
// the page is kept in the browser's history.
export const followScript = `
const box = document.createElement('input');
box.type = 'checkbox';
box.checked = true;
const follow = document.createElement('label');
follow.className = 'follow';
follow.append(box, ' Show each removal as it comes');
document.querySelector('header').append(follow);
const folded = [...document.querySelectorAll('details')];
const { open = [], focused = false } = history.state ?? {};
for (const index of open) if (folded[index]) folded[index].open = true;
if (focused) box.focus({ preventScroll: true });
setInterval(() => {
    if (!box.checked || document.hidden) return;
    const opened = [...folded.keys()].filter((index) => folded[index].open);
    history.replaceState({ open: opened, focused: document.activeElement === box }, '');
    location.reload();
}, 1000 * document.body.dataset.reload);
`;
