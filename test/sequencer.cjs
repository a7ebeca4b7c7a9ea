'use strict';
// The longest test files start first, or one of them would run at the end while the other worker waits. Jest knows the
// times of files only where it has run them before, which a fresh clone has not.

const { default: Sequencer } = require('@jest/test-sequencer');

const longest = [
    'native/architectures',
    'cluster/cluster',
    'export/export',
    'cli/bad_input',
    'pipeline/compare',
    'report/report',
    'cli/json_fields',
    'methods/methods',
    'methods/laco',
    'export/linear'
].map((name) => `/test/${name}.test.ts`);

module.exports = class extends Sequencer {
    sort(tests) {
        const rank = ({ path }) => {
            const found = longest.findIndex((name) => path.replaceAll('\\', '/').endsWith(name));
            return found < 0 ? longest.length : found;
        };
        return [...super.sort(tests)].sort((a, b) => rank(a) - rank(b));
    }
};
