'use strict';

// Compiles test/native/fixtures.cpp and llama.cpp's perplexity tool before the tests, which run at once.
const { execFileSync } = require('node:child_process');
const path = require('node:path');

module.exports = () => {
    execFileSync(
        'cmake',
        ['--build', path.resolve(__dirname, '..', 'build', 'cmake'), '--target', 'fixtures', 'llama-perplexity'],
        { stdio: ['ignore', 'ignore', 'inherit'] }
    );
};
