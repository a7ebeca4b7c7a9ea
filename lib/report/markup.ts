// HTML, written as template strings.

/** Text that is HTML already. */
export class Html {
    constructor(readonly text: string) {}
}

type Value = Html | string | number | Value[] | null | undefined;

/**
 * HTML with values in it. All values are escaped but {@link Html}; lists are joined; null and undefined are empty.
 *
 * Its name is not `html`, because Prettier lays out templates of that name anew, and so would change the pages.
 */
export function markup(strings: TemplateStringsArray, ...values: Value[]): Html {
    return new Html(strings.reduce((text, string, i) => text + textOf(values[i - 1]) + string));
}

function textOf(value: Value): string {
    if (value instanceof Html) {
        return value.text;
    }
    if (Array.isArray(value)) {
        return value.map(textOf).join('');
    }
    return String(value ?? '').replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
