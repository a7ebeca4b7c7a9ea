// The guides name files and folders of the repository. Each must be there.
import fs from 'node:fs';
import path from 'node:path';

const root = path.resolve(__dirname, '../..');
const guides = [
    'README.md',
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    'docs/cli.md',
    'docs/how-it-works.md',
    'docs/recipes.md',
    'docs/results.md'
];

/** The targets of relative links, and what stands in backticks and begins with one of our folders. */
function namedPaths(guide: string): string[] {
    const text = fs.readFileSync(path.join(root, guide), 'utf8');
    const links = Array.from(text.matchAll(/\]\((?!https?:)([^)#]+)/g), ([, to]) =>
        path.join(path.dirname(guide), to!)
    );
    const named = Array.from(
        text.matchAll(/`((?:lib|native|install|models|test|bench|docs)\/[\w./-]*)`/g),
        ([, at]) => at!
    );
    return [...links, ...named].filter((file) => !file.includes('NAME'));
}

test.each(guides)('%s names files that exist', (guide) => {
    const paths = namedPaths(guide);
    expect(paths.filter((file) => !fs.existsSync(path.join(root, file)))).toEqual([]);
});

test('the tree in CONTRIBUTING.md has a line for each folder of lib/ and native/', () => {
    const text = fs.readFileSync(path.join(root, 'CONTRIBUTING.md'), 'utf8');
    const folders = ['lib', 'native'].flatMap((parent) =>
        fs
            .readdirSync(path.join(root, parent), { withFileTypes: true })
            .filter((entry) => entry.isDirectory())
            .map(({ name }) => `${parent}/${name}/`)
    );
    expect(folders.filter((folder) => !text.includes(`\n| \`${folder}\` |`))).toEqual([]);
});
