import { lowestMove, unitsOf } from './moves.js';
import { stepwise } from './stepwise.js';

/**
 * Removes the layers that change the residual stream least, by E[|f(x)| / |x + f(x)|] measured once in the dense model
 * (Samragh et al. 2023, arXiv 2312.09299, as ShortGPT compares with it).
 */
export const relativeMagnitude = stepwise('relative-magnitude', 'layer', async (options) => {
    const { model, calibration, signal } = options;
    const changes = await model.influence(calibration, unitsOf('layer', options), { signal });
    return lowestMove(
        'layer',
        options,
        changes.map(({ change }) => change)
    );
});
