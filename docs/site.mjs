// A TypeDoc plugin for the site that `npm run site` makes of the Markdown: a page is called what its heading says.
import { Converter } from 'typedoc';

const HEADING = /^# (.+)\n/;

/** @param {import('typedoc').Application} app */
export function load(app) {
    app.converter.on(Converter.EVENT_CREATE_DOCUMENT, (_, document) => {
        document.name = HEADING.exec(document.content[0].text)[1];
    });
    app.converter.on(Converter.EVENT_RESOLVE_BEGIN, ({ project }) => {
        project.readme[0].text = project.readme[0].text.replace(HEADING, ''); // its page has the project's name already
    });
}
